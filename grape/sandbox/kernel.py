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
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
DEATH_SIGNAL, KEEP_CAPABILITIES, SUBREAPER, NO_NEW_PRIVILEGES, SECCOMP = 1, 8, 36, 38, 22
RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
# CAP_DAC_READ_SEARCH, or CAP_DAC_OVERRIDE where a container grants only that. Either lets open what belongs to others.
READING = (1 << 2, 1 << 1)
# System calls that a function of plain Python never makes and an attack on the kernel or on others does.
# fmt: off
# name: (x86_64, aarch64). Refused with EPERM.
REFUSED = {
    "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "socket": (41, 198), "shmget": (29, 194), "shmat": (30, 196), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280), "perf_event_open": (298, 241),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "userfaultfd": (323, 282),
    "open_by_handle_at": (304, 265), "kexec_load": (246, 104), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "setpriority": (141, 140), "sched_setaffinity": (203, 122), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274), "ioprio_set": (251, 30), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "kcmp": (312, 272), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "process_madvise": (440, 440),
    "mount_setattr": (442, 442), "process_mrelease": (448, 448),
}
# Allowed on oneself alone: the first argument is 0 or the caller's own process.
ON_ONESELF = {"prlimit64": (302, 261), "kill": (62, 129), "tgkill": (234, 131)}
# Where the program shares processes and file systems with us: signals by other ways, and changes of files that landlock does
# not know. -1: the machine has no such call.
SHARED_REFUSED = {
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "chmod": (90, -1), "fchmod": (91, 52),
    "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, -1), "fchown": (93, 55), "lchown": (94, -1),
    "fchownat": (260, 54), "utime": (132, -1), "utimes": (235, -1), "futimesat": (261, -1), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
}
# fmt: on
CLONE, CLONE3 = (56, 220), 435
NAMESPACES = 0x7E020000  # every CLONE_NEW* flag
AUDIT = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # machine: (column above, audit architecture)
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, DENY, ABSENT = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38  # EPERM, ENOSYS


def _call(step: str, *arguments: object) -> int:
    """syscall(2); integers are passed as long, which the variadic C function needs."""
    return _checked(step, int(LIBC.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))))


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
    """Give up every capability and, with `uid`, root's identity; for good. keep_reading: keep the right to read what others may
    not. Only under landlock, which then says what can be read: a Python below /root could not load its own library otherwise."""
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


def landlock(readable: list[str], writable: str) -> None:
    """Files: read below `readable`, all below `writable`, nothing else, nothing executable. TCP: none, from ABI 4 on.
    Signals and abstract sockets: none to processes outside, from ABI 6 on. What older ABIs lack, the seccomp filter holds.
    Raises OSError: the kernel has no landlock, or one before ABI 3."""
    try:
        version = _call("landlock", LANDLOCK_CREATE, None, 0, 1)
    except OSError:
        version = 0
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


def _program(column: int, architecture: int, own: int | None) -> list[tuple[int, int, int, int]]:
    """BPF instructions (code, jump if true, jump if false, constant); every check either returns or falls through."""
    # In struct seccomp_data the number stands at 0, the architecture at 4, the first argument at 16.
    program = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, DENY), (LOAD, 0, 0, 0)]
    if column == 0:  # the x32 interface has numbers of its own
        program += [(AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, DENY)]
    for pair in (REFUSED if own is None else REFUSED | SHARED_REFUSED).values():
        if pair[column] >= 0:
            program += [(EQUAL, 0, 1, pair[column]), (RETURN, 0, 0, DENY)]
    for pair in () if own is None else ON_ONESELF.values():
        # Another call: over the block. This call: the first argument is 0 or our own process, or it is refused.
        program += [(EQUAL, 0, 5, pair[column]), (LOAD, 0, 0, 16), (EQUAL, 2, 0, 0), (EQUAL, 1, 0, own or 0)]
        program += [(RETURN, 0, 0, DENY), (RETURN, 0, 0, ALLOW)]
    # clone3 hides its flags in memory; "no such call" makes the C library use clone, whose flags can be seen.
    program += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, ABSENT), (EQUAL, 0, 4, CLONE[column]), (LOAD, 0, 0, 16)]
    return program + [(ANY_BIT, 0, 1, NAMESPACES), (RETURN, 0, 0, DENY), (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, ALLOW)]


def seccomp(own: int | None) -> None:
    """Filter the system calls of this thread and all it starts, for good; needs no_new_privs. Where the machine's call numbers are
    not known to us there is no filter.

    The second wall, not the first: namespaces or landlock hold the files; this one also holds what they do not (UDP and UNIX
    sockets, limits and priorities of other processes).

    own: the process that signals and limits may go to; None: any that can be seen, which in a process namespace is only us.
    """
    if MACHINE not in AUDIT:
        return
    program = _program(*AUDIT[MACHINE], own)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(code)))
    control(SECCOMP, 2, ctypes.addressof(header))
