"""What the kernel enforces on the process that runs an agent's code (tools/sandbox.py). Knows nothing of agents.

Linux only, no packages, no root: system calls through ctypes. Whatever this machine lacks is skipped silently;
the sandbox then tries what a hostile program would try, and says what was not refused.

    isolate()          namespaces: no network, and mounts of our own, for a process and all it will start
    private_tmpfs()    a scratch directory in memory, of limited size, gone with its last process
    reopen_files()     in the child: no file descriptor with the right to write, or shared with another child
    private_maps()     in the child: no memory shared with a file or another process
    confine()          for good, in the child: limits, Landlock (files), no capabilities, seccomp (system calls)
    threads()          how many threads the child has: the kernel does not limit them for root
"""
import ctypes
import errno
import os
import resource
import signal
import stat
import struct
import sys
from collections.abc import Iterable

LINUX = sys.platform == "linux"
libc = ctypes.CDLL(None, use_errno=True)

NEWNS, NEWIPC, NEWUSER, NEWNET = 0x20000, 0x8000000, 0x10000000, 0x40000000                      # <linux/sched.h>
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 1 << 14, 1 << 18                   # <linux/mount.h>
MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 2, 16, 32                                         # <asm-generic/mman-common.h>
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38            # <linux/prctl.h>


def call(function, *arguments):
    """A libc function's result; OSError when it is -1. Integers go as the kernel's 64-bit words."""
    result = function(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def isolate() -> bool:
    """Leaves the network, System V memory and the mounts of others behind. The process must have one thread."""
    if not LINUX:
        return False
    uid, gid = os.getuid(), os.getgid()
    try:
        call(libc.unshare, NEWUSER | NEWNET | NEWIPC | NEWNS)
        for file, line in ("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1"):
            with open(f"/proc/self/{file}", "w") as f:
                f.write(line)
    except OSError:
        try:
            call(libc.unshare, NEWNET | NEWIPC | NEWNS)             # user namespaces are off, but we may be root
        except OSError:
            return False
    return True


def private_tmpfs(directory: str, size: int) -> bool:
    """Mounts an empty file system of at most `size` bytes that only this process and its children see."""
    if not LINUX:
        return False
    try:
        call(libc.unshare, NEWNS)
        call(libc.mount, b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        call(libc.mount, b"scratch", os.fsencode(directory), b"tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
             f"size={size},nr_inodes=1000,mode=700".encode())
    except OSError:
        return False
    return True


def reopen_files() -> None:
    """Reopens every file for reading only. All children share what was open before a fork: its position, its flags
    (with O_DIRECT others' reads fail) and the right to write, whatever Landlock says later."""
    if not LINUX:
        return
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            regular = fd == 0 or stat.S_ISREG(os.fstat(fd).st_mode)     # 0: /dev/null
        except OSError:                                     # the listing itself
            continue
        if regular:
            anew = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            os.lseek(anew, os.lseek(fd, 0, os.SEEK_CUR), os.SEEK_SET)
            os.dup2(anew, fd, inheritable=False)
            os.close(anew)


def private_maps() -> None:
    """Replaces memory that is shared with a file or with other processes by a private copy at the same address.

    Otherwise the code could write into what a tool module has mapped for writing. Landlock does not prevent that.
    """
    if not LINUX:
        return
    with open("/proc/self/maps") as f:
        lines = f.read().splitlines()
    for line in lines:
        span, rights, offset, _, inode, *path = line.split(maxsplit=5)
        if rights[3] == "p":
            continue
        begin, end = (int(address, 16) for address in span.split("-"))
        protection = sum(bit for bit, right in zip((1, 2, 4), rights) if right != "-")
        try:
            file = os.open(path[0], os.O_RDONLY | os.O_CLOEXEC)
            same = os.fstat(file).st_ino == int(inode)
        except (OSError, IndexError):                       # deleted, or without a name: its content is copied
            file, same = -1, False
        if same:
            call(libc.mmap, begin, end - begin, protection, MAP_PRIVATE | MAP_FIXED, file, int(offset, 16))
        else:
            content = ctypes.string_at(begin, end - begin) if rights[0] == "r" else b""
            call(libc.mmap, begin, end - begin, 3, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0)
            ctypes.memmove(begin, content, len(content))
            call(libc.mprotect, begin, end - begin, protection)
        if file != -1:
            os.close(file)


def threads(pid: int) -> int:
    """The number of threads of the process; 0 if the system does not tell."""
    try:
        return os.stat(f"/proc/{pid}/task").st_nlink - 2
    except OSError:
        return 0


def limit(kind, soft, hard=None):
    """Sets a resource limit of this process, never above the one it was started with."""
    allowed = resource.getrlimit(kind)[1]
    allowed = sys.maxsize if allowed == resource.RLIM_INFINITY else allowed
    resource.setrlimit(kind, (min(soft, allowed), min(hard or soft, allowed)))


def confine(readable: Iterable[str], writable: Iterable[str], memory: int, cpu: int, file_size: int,
            open_files: int) -> None:
    """Gives up, for good, all that the agent's code does not need. `readable` and `writable` are paths; memory is in
    bytes beyond what the process has now, cpu in seconds, file_size in bytes."""
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_CPU, cpu, cpu + 1)                                 # SIGXCPU, then SIGKILL
    limit(resource.RLIMIT_FSIZE, file_size)
    limit(resource.RLIMIT_NOFILE, open_files)
    if not LINUX:
        return
    limit(resource.RLIMIT_NPROC, 4096)                      # threads of all children together; see threads() for root
    limit(resource.RLIMIT_SIGPENDING, open_files)     # all of the user's processes share it, also for their timers
    with open("/proc/self/statm") as f:
        limit(resource.RLIMIT_AS, memory + int(f.read().split()[0]) * resource.getpagesize())
    with open("/proc/self/oom_score_adj", "w") as f:
        f.write("1000")                                     # when the machine runs out of memory, this one goes first
    call(libc.capset, struct.pack("Ii", 0x20080522, 0), bytes(24))           # version 3; no capability in any set
    call(libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call(libc.prctl, PR_SET_DUMPABLE, 0, 0, 0, 0)                            # no ptrace, no /proc/<pid>/mem
    call(libc.prctl, PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    restrict_files(readable, writable)
    restrict_system_calls()


# Landlock: <linux/landlock.h>. Its system calls have the same numbers on all machines.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
SPECIAL_FILES = 1 << 0 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11                 # execute; devices, sockets, pipes
RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}   # of each version


def restrict_files(readable, writable):
    """Landlock: everything is refused but reading beneath `readable` and writing beneath `writable`; also TCP, and
    signals and abstract sockets to processes outside, where the kernel is new enough."""
    try:
        version = call(libc.syscall, CREATE_RULESET, None, 0, 1)
    except OSError:
        return
    all_rights = RIGHTS[min(version, 5)]
    tcp, scopes = 0b11 * (version >= 4), 0b11 * (version >= 6)
    ruleset = call(libc.syscall, CREATE_RULESET, struct.pack("QQQ", all_rights, tcp, scopes), 24, 0)
    grants = [(path, READ_FILE | READ_DIR) for path in readable]
    grants += [(path, all_rights & ~SPECIAL_FILES) for path in writable]
    grants.append(("/dev/null", READ_FILE | WRITE_FILE | TRUNCATE & all_rights))
    for path, rights in grants:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        if not os.path.isdir(path):
            rights &= READ_FILE | WRITE_FILE | TRUNCATE
        call(libc.syscall, ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, fd), 0)
        os.close(fd)
    call(libc.syscall, RESTRICT_SELF, ruleset, 1 if version >= 7 else 0)     # 1: no line in the audit log per refusal
    os.close(ruleset)


# Seccomp. System calls that are refused: name: (number on x86_64, number on aarch64).
REFUSED = {
    # channels to others, and memory that no limit counts
    "socket": (41, 198), "socketpair": (53, 199), "memfd_create": (319, 279), "mq_open": (240, 180),
    "mq_unlink": (241, 181), "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190),
    "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187),
    # processes
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272), "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "prctl": (157, 167), "seccomp": (317, 277),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "personality": (135, 92), "unshare": (272, 97),
    "setns": (308, 268),
    # what Landlock does not look at: modes, owners, times and attributes of any file, watching files
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None), "fchown": (93, 55),
    "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "truncate": (76, 45), "chroot": (161, 51), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "swapon": (167, 224), "swapoff": (168, 225), "quotactl": (179, 60), "acct": (163, 89),
    "inotify_init": (253, None), "inotify_init1": (294, 26), "fanotify_init": (300, 262),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "vmsplice": (278, 75), "splice": (275, 76), "tee": (276, 77),       # pipes would hold memory that no limit counts
    "flock": (73, 32),                                      # it locks even a file opened read-only
    # the kernel itself
    "sync": (162, 81), "syncfs": (306, 267),                # writes to all disks, while others wait
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142),
    "syslog": (103, 116), "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266), "io_setup": (206, 0),
    "capset": (126, 91), "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "vhangup": (153, 58),
    "lookup_dcookie": (212, 18), "timer_create": (222, 107),       # a timer's SIGCONT would end the pause between steps
}
# They succeed and do nothing: they would flush the disk, or empty the page cache, for everybody.
SKIPPED = {"fsync": (74, 82), "fdatasync": (75, 83), "sync_file_range": (277, 84), "fadvise64": (221, 223)}
CLONE_THREAD, CLONE_FILES, O_TRUNC, SELF = 0x10000, 0x400, 0o1000, "the process's own id"
# fcntl: duplicates and flags. No lease, for which others wait 45 s, no watching of directories, no large pipes. Locks
# do nothing: others would see them, wait for them, and find them when the trajectory is over.
FCNTL, LOCKS = (*range(8), 36, 37, 38, 1030), (6, 7, 37, 38)
# ioctl: what isatty asks (in two versions), a terminal's size, bytes to read, (not) blocking, closed on exec or not.
IOCTL = 0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451
# Opened to read and truncate, which the first two versions of Landlock let pass; or with access mode 3, neither to read
# nor to write, which all of them let pass.
OPEN = O_TRUNC, os.O_ACCMODE, O_TRUNC | os.O_ACCMODE
# Number on x86_64 and aarch64, argument, mask, values; True: only these values are allowed; False: these are refused;
# None: with these the call succeeds and does nothing.
CONDITIONS = [
    ((56, 220), 0, CLONE_THREAD | CLONE_FILES, [CLONE_THREAD | CLONE_FILES], True),     # clone: threads, which share
                                                            # their open files, but no processes
    ((62, 129), 0, 0xFFFFFFFF, [SELF], True),               # kill, tgkill: itself
    ((234, 131), 0, 0xFFFFFFFF, [SELF], True),
    ((62, 129), 1, 0xFFFFFFFF, [signal.SIGCONT], False),    # which would take back the SIGSTOP between steps
    ((234, 131), 2, 0xFFFFFFFF, [signal.SIGCONT], False),
    ((302, 261), 0, 0xFFFFFFFF, [0], True),                 # prlimit64: its own limits
    ((2, None), 1, O_TRUNC | os.O_ACCMODE, OPEN, False),    # open, openat
    ((257, 56), 2, O_TRUNC | os.O_ACCMODE, OPEN, False),
    ((72, 25), 1, 0xFFFFFFFF, LOCKS, None),
    ((72, 25), 1, 0xFFFFFFFF, FCNTL, True),
    ((16, 29), 1, 0xFFFFFFFF, IOCTL, True),
]
NEW_CALLS = 424     # from here on, the same numbers on all machines: answered as by a kernel that is too old for them


def restrict_system_calls():
    """Seccomp: REFUSED, SKIPPED and CONDITIONS as a BPF program, which the kernel runs before every system call."""
    machines = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}       # column of the tables, AUDIT_ARCH
    machine = os.uname().machine
    if machine not in machines or sys.maxsize < 2**32:
        return
    column, architecture = machines[machine]
    load, mask, equal, at_least, ret = 0x20, 0x54, 0x15, 0x35, 0x06          # BPF's LD, AND, JEQ, JGE and RET
    allow, kill = 0x7FFF0000, 0x80000000
    skip, refuse, unknown = 0x50000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
    number, argument = 0, [16 + 8 * i for i in range(6)]                     # byte offsets in struct seccomp_data
    code = [(load, 0, 0, 4), (equal, 1, 0, architecture), (ret, 0, 0, kill),
            (load, 0, 0, number), (at_least, 0, 1, NEW_CALLS), (ret, 0, 0, unknown)]
    for numbers in REFUSED.values():
        if numbers[column] is not None:
            code += [(equal, 0, 1, numbers[column]), (ret, 0, 0, refuse)]
    for numbers in SKIPPED.values():
        code += [(equal, 0, 1, numbers[column]), (ret, 0, 0, skip)]
    for numbers, index, bits, values, allowed in CONDITIONS:
        if numbers[column] is not None:
            n = len(values)
            code += [(load, 0, 0, number), (equal, 0, n + 3, numbers[column]),
                     (load, 0, 0, argument[index]), (mask, 0, 0, bits)]
            for left, value in zip(range(n, 0, -1), values):                 # lines from here on to the refusal
                value = os.getpid() if value is SELF else value
                code.append((equal, left if allowed else left - 1, int(left == 1 and not allowed), value))
            code.append((ret, 0, 0, skip if allowed is None else refuse))
    code.append((ret, 0, 0, allow))
    program = b"".join(struct.pack("HBBI", *line) for line in code)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(buffer))    # struct sock_fprog
    try:
        call(libc.prctl, PR_SET_SECCOMP, 2, header, 0, 0)
    except OSError as error:
        if error.errno != errno.EINVAL:                                      # EINVAL: a kernel without seccomp
            raise
