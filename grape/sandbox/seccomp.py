"""A seccomp filter: the system calls that a function of plain Python never makes and an attack on the kernel or on others does.

Runs in the child process: standard library and `kernel` only. The second wall, not the first: namespaces or landlock hold the
files; this one also holds what they do not (UDP and UNIX sockets, limits and priorities of other processes).
"""

from __future__ import annotations

import ctypes
import struct

from grape.sandbox import kernel

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
        program += [
            (EQUAL, 0, 5, pair[column]),
            (LOAD, 0, 0, 16),
            (EQUAL, 2, 0, 0),
            (EQUAL, 1, 0, own or 0),
            (RETURN, 0, 0, DENY),
            (RETURN, 0, 0, ALLOW),
        ]
    # clone3 hides its flags in memory; "no such call" makes the C library use clone, whose flags can be seen.
    program += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, ABSENT)]
    program += [
        (EQUAL, 0, 4, CLONE[column]),
        (LOAD, 0, 0, 16),
        (ANY_BIT, 0, 1, NAMESPACES),
        (RETURN, 0, 0, DENY),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, ALLOW),
    ]
    return program


def install(own: int | None) -> bool:
    """Put the filter on this thread and all it starts, for good; needs no_new_privs.

    Args:
        own: the process that signals and limits may go to; None: any that can be seen, which in a process namespace is only us.

    Returns:
        False where the machine's call numbers are not known to us: there is no filter then.
    """
    if kernel.MACHINE not in AUDIT:
        return False
    program = _program(*AUDIT[kernel.MACHINE], own)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(code)))
    kernel.control(kernel.SECCOMP, 2, ctypes.addressof(header))
    return True
