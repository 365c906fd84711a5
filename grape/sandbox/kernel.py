"""What Linux offers to hold a program, called by ctypes: namespaces, mounts, capabilities, landlock, seccomp.

Runs in the child process, where nothing of grape can be imported: standard library only. Every function raises OSError with
the step's name when the kernel refuses. Elsewhere than on Linux only the import works.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
MACHINE = os.uname().machine
# System calls whose numbers differ between machines; those from 424 on are the same everywhere.
NUMBERS = {"x86_64": {"pivot_root": 155, "capset": 126}, "aarch64": {"pivot_root": 41, "capset": 91}}
MOUNT_SETATTR, LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 442, 444, 445, 446
NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x20000,
    0x2000000,
    0x4000000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
DEATH_SIGNAL, KEEP_CAPABILITIES, SUBREAPER, NO_NEW_PRIVILEGES, SECCOMP = 1, 8, 36, 38, 22
RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
# CAP_DAC_READ_SEARCH, or CAP_DAC_OVERRIDE where a container grants only that. Either lets open what belongs to others.
READING = (1 << 2, 1 << 1)


def _call(step: str, *arguments: object) -> int:
    """syscall(2); integers are passed as long, which the variadic C function needs."""
    plain = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(LIBC.syscall(*plain))
    return _checked(step, result)


def _checked(step: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{step}: {os.strerror(code)}")
    return result


def control(option: int, value: int, third: int = 0) -> None:
    """prctl(2)."""
    _checked(f"prctl {option}", LIBC.prctl(option, *map(ctypes.c_ulong, (value, third, 0, 0))))


def unshare(flags: int) -> None:
    _checked(f"unshare {flags:#x}", LIBC.unshare(ctypes.c_int(flags)))


def own_user_namespace(inner: int) -> None:
    """Leave the user namespace; the caller is user `inner` in the new one, with every capability over what it creates there."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{inner} {uid} 1"), ("gid_map", f"{inner} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    arguments = [ctypes.c_char_p(text.encode()) for text in (source, target, kind)]
    _checked(f"mount {target}", LIBC.mount(*arguments, ctypes.c_ulong(flags), ctypes.c_char_p(data.encode())))


def set_mount(path: str, attributes: int, recursive: bool) -> None:
    """mount_setattr(2): only adds restrictions, so flags that the outer namespace locked stay as they are. Linux 5.12."""
    wanted = struct.pack("QQQQ", attributes, 0, 0, 0)
    _call(f"mount_setattr {path}", MOUNT_SETATTR, -100, path.encode(), 0x8000 if recursive else 0, wanted, len(wanted))


def build_root(readable: list[tuple[str, str]], work: str, size: int, uid: int) -> None:
    """A root of nothing but the read-only folders (source, place) and an empty `work` of `size` bytes owned by `uid`.

    The old root is unmounted, so there is no path, not even `..` of an open folder, that leads outside.
    """
    mount("none", "/", "none", 0x4000 | 0x40000)  # private, recursive: nothing of ours shows outside
    base = next(path for path in ("/tmp", "/run", "/usr") if os.path.isdir(path))
    mount("tmpfs", base, "tmpfs", NOSUID | NODEV, "size=1m,mode=755")
    os.mkdir(f"{base}/old")
    _call("pivot_root", NUMBERS[MACHINE]["pivot_root"], base.encode(), f"{base}/old".encode())
    os.chdir("/")
    for source, place in readable:
        if os.path.isdir(f"/old{source}"):
            os.makedirs(place, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
        mount(f"/old{source}", place, "none", 0x1000 | 0x4000)  # bind, recursive
        set_mount(place, RDONLY | NOSUID | (0 if source.startswith("/dev/") else NODEV), recursive=True)
    os.makedirs(work)
    mount("tmpfs", work, "tmpfs", NOSUID | NODEV | NOEXEC, f"size={size},mode=700,nr_inodes=4096")
    os.chown(work, uid, uid)
    _checked("umount", LIBC.umount2(b"/old", 2))  # detach
    os.rmdir("/old")
    set_mount("/", RDONLY | NOSUID | NODEV, recursive=False)


def become(uid: int | None, keep_reading: bool = False) -> None:
    """Give up every capability and, with `uid`, root's identity; for good.

    Args:
        keep_reading: keep the right to read what other users may not. Only under landlock, which then says what can be read:
            a Python below /root could not load its own library otherwise.
    """
    if uid is not None:
        if keep_reading:
            control(KEEP_CAPABILITIES, 1)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    for kept in READING if keep_reading else (0,):
        try:
            header = struct.pack("Ii", 0x20080522, 0)
            _call("capset", NUMBERS[MACHINE]["capset"], header, struct.pack("6I", kept, kept, 0, 0, 0, 0))
            break
        except PermissionError:
            if kept == READING[-1]:
                raise
    control(NO_NEW_PRIVILEGES, 1)


def landlock_version() -> int:
    """The kernel's landlock ABI, 0: none."""
    try:
        return _call("landlock", LANDLOCK_CREATE, None, 0, 1)
    except OSError:
        return 0


def landlock(readable: list[str], writable: str) -> None:
    """Files: read below `readable`, all below `writable`, nothing else, nothing executable. TCP: none, from ABI 4 on.
    Signals and abstract sockets: none to processes outside, from ABI 6 on. What older ABIs lack, the seccomp filter holds.

    Raises:
        OSError: the kernel has no landlock, or one before ABI 3.
    """
    version = landlock_version()
    if version < 3:  # earlier ones let files be emptied
        raise OSError(errno.ENOSYS, f"landlock ABI 3 (Linux 6.2) is needed, here it is {version or 'not there, or switched off'}")
    every = (1 << (15 if version < 5 else 16)) - 1
    attributes = struct.pack("QQQ", every, 0b11, 0b11)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = _call("landlock", LANDLOCK_CREATE, attributes, len(attributes), 0)
    read_file, read_folder = 1 << 2, 1 << 3
    for path, allowed in [(p, read_file | read_folder) for p in readable] + [(writable, every & ~1)]:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            allowed &= read_file
        _call(f"landlock {path}", LANDLOCK_ADD, rules, 1, struct.pack("=Qi", allowed, folder), 0)
        os.close(folder)
    _call("landlock", LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)
