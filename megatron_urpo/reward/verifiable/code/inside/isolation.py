"""Puts this process into a small world of its own: Linux namespaces by their system calls, no other program needed.

`enter_namespaces` returns in process 1 of new user, mount, process, network, IPC and host name namespaces. Its root is
a read-only tmpfs that holds the Python installation and the system's libraries, read-only too; everything else of the
host, the home and run folders among it, has no name there. `private_folder` and `drop_privileges` are for each program
that process 1 forks.

Root's own trap: RLIMIT_NPROC does not bind the host's user 0, whatever the namespace calls it. So under root programs
run as another user of the host (nobody), which has nothing else to do in this namespace; the kernel counts processes by
namespace and user, so workers do not share a budget.
"""

import ctypes
import os
import socket
import sys

PROGRAM_ID = 1000  # user and group of programs inside, where the namespace can have two
_NOBODY = 65534
_NEW_NS, _NEW_CGROUP, _NEW_UTS, _NEW_IPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
_NEW_USER, _NEW_PID, _NEW_NET = 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_NOATIME, _NODIRATIME, _RELATIME, _DETACH = 1 << 10, 1 << 11, 1 << 21, 2
_ST_RELATIME = 4096
_PDEATHSIG, _SET_DUMPABLE, _CAPBSET_DROP, _NO_NEW_PRIVS, _SUBREAPER = 1, 4, 24, 38, 36
_SIGKILL = 9
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_libc = ctypes.CDLL(None, use_errno=True)


def enter_namespaces() -> bool:
    """Returns in the new process 1; the caller's own process waits for it and ends as it ends. Raises OSError.

    True where programs get a user of their own beside that of process 1.
    """
    if sys.base_prefix.startswith("/tmp/"):
        raise OSError(
            f"Python is installed in {sys.base_prefix}, and programs get a /tmp of their own; install it elsewhere"
        )
    has_two_users = _unshare_mapped(os.geteuid() == 0)
    child = os.fork()  # the process namespace begins with the next process
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    _prctl(_PDEATHSIG, _SIGKILL)
    _build_root()
    socket.sethostname("sandbox")
    with open("/proc/sys/user/max_user_namespaces", "w") as file:  # programs shall not gain powers in one of their own
        file.write("0")
    _mount("none", "/proc", None, _BIND | _REMOUNT | _RDONLY | _NOSUID | _NODEV | _NOEXEC | _RELATIME)
    hide_from_ptrace()
    return has_two_users


def private_folder(megabytes: int) -> None:
    """An empty /tmp for this process and its children alone; it goes when the last of them has gone."""
    _call("unshare", _NEW_NS | _NEW_IPC)
    _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, f"size={megabytes}m,nr_inodes=4096,mode=1777")
    os.chdir("/tmp")


def drop_privileges(user: int | None) -> None:
    """Becomes `user`, if one is given, and takes every capability from this process, for good."""
    for capability in range(64):
        if _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break  # the kernel knows no more of them, or this process has none to drop
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    _prctl(_NO_NEW_PRIVS, 1)
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _call("capset", header, nothing)


def can_become(user: int) -> bool:
    """Whether a child of this process can change to `user` for good."""
    child = os.fork()
    if child == 0:
        try:
            drop_privileges(user)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def hide_from_ptrace() -> None:
    """Memory and descriptors of this process, and of children until they say otherwise, are nobody's to read."""
    _prctl(_SET_DUMPABLE, 0)


def allow_ptrace() -> None:
    """So that a program can open its own /proc/self/fd; it is alone in its namespace with a process that cannot be."""
    _prctl(_SET_DUMPABLE, 1)


def adopt_orphans() -> None:
    """Descendants whose parent dies become children of this process."""
    _prctl(_SUBREAPER, 1)


def _unshare_mapped(is_root: bool) -> bool:
    """New namespaces; True where they have two users.

    A helper that stays outside writes the map of users, since two of them take its privileges.
    """
    ready_read, ready_write = os.pipe()
    done_read, done_write = os.pipe()
    target = os.getpid()
    helper = os.fork()
    if helper == 0:
        os.close(ready_write)
        os.close(done_read)
        if os.read(ready_read, 1):
            os.write(done_write, _write_maps(target, is_root))
        os._exit(0)
    for descriptor in (ready_read, done_write):
        os.close(descriptor)
    try:
        _call("unshare", _NEW_USER | _NEW_NS | _NEW_PID | _NEW_NET | _NEW_IPC | _NEW_UTS | _NEW_CGROUP)
        os.write(ready_write, b"+")
        result = os.read(done_read, 1)
        if result not in (b"1", b"2"):
            raise OSError("the user map could not be written")
        return result == b"2"
    finally:
        os.close(ready_write)
        os.close(done_read)
        os.waitpid(helper, 0)


def _write_maps(pid: int, is_root: bool) -> bytes:
    """How many users were mapped, as a digit: two where root may, else one; `-` where that failed too."""
    for second in (f"\n{PROGRAM_ID} {_NOBODY} 1", "") if is_root else ("",):
        try:
            for name, text in (
                ("uid_map", f"0 {os.geteuid()} 1{second}"),
                ("setgroups", "allow" if second else "deny"),
                ("gid_map", f"0 {os.getegid()} 1{second}"),
            ):
                with open(f"/proc/{pid}/{name}", "w") as file:
                    file.write(text)
        except OSError:
            continue  # root of a namespace that holds no other user
        return b"2" if second else b"1"
    return b"-"


def _build_root() -> None:
    _mount("none", "/", None, _REC | _PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    os.mkdir("/tmp/old", 0o700)
    pivot_root = _PIVOT_ROOT.get(os.uname().machine)
    if pivot_root is None:
        raise OSError(f"pivot_root has no known number on {os.uname().machine}")
    _call("syscall", pivot_root, b"/tmp", b"/tmp/old")
    os.chdir("/")
    for path in _visible():
        _show(path)
    os.makedirs("/dev", exist_ok=True)
    for name in ("null", "zero", "full", "random", "urandom"):
        with open(f"/dev/{name}", "w"):
            pass
        _mount(f"/old/dev/{name}", f"/dev/{name}", None, _BIND)
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{target}", f"/dev/{name}")
    os.mkdir("/proc")
    os.mkdir("/tmp", 0o755)
    _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    _call("umount2", b"/old", _DETACH)
    os.rmdir("/old")
    _mount("none", "/", None, _BIND | _REMOUNT | _RDONLY | _NOSUID | _NODEV)


def _visible() -> list[str]:
    """The Python installation and the libraries that it is linked with; no folder inside another."""
    paths = {sys.base_prefix, sys.base_exec_prefix, "/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache"}
    paths = {path for path in paths if os.path.lexists(f"/old{path}")}
    return sorted(path for path in paths if not any(path.startswith(other + "/") for other in paths))


def _show(path: str) -> None:
    """`path` of the host at the same place, read-only, with what is mounted below it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    source = f"/old{path}"
    if os.path.islink(source):
        os.symlink(os.readlink(source), path)
        return
    if os.path.isdir(source):
        os.mkdir(path)
    else:
        with open(path, "w"):
            pass
    _mount(source, path, None, _BIND | _REC)
    with open("/old/proc/self/mountinfo") as file:
        places = [line.split()[4].replace("\\040", " ") for line in file]
    for place in places:
        if place == path or place.startswith(path + "/"):
            given = os.statvfs(place).f_flag  # what the host forbids must be forbidden again, or the call is refused
            kept = given & (_NOEXEC | _NOATIME | _NODIRATIME) | (_RELATIME if given & _ST_RELATIME else 0)
            _mount("none", place, None, _BIND | _REMOUNT | _RDONLY | _NOSUID | _NODEV | kept)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _call("mount", texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])


def _prctl(option: int, value: int) -> None:
    _call("prctl", option, value, 0, 0, 0)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
