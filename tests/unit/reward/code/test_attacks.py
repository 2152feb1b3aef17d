# ruff: noqa: E501 (programs and hostile texts read better on their own lines)
"""What a program may reach, tried by real programs in a real sandbox, which must then serve the next one."""

import os
import socket
from pathlib import Path

import pytest

from megatron_urpo.reward.verifiable.code.sandbox import Sandbox
from tests.support.programs import SMALL, descendants, needs_namespaces, run, wait_until

pytestmark = needs_namespaces


def test_the_environment_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    fresh = Sandbox("namespaces")  # started while the secret stands in this process's environment
    try:
        program = """if True:
            import os
            print(dict(os.environ))
            for pid in [p for p in os.listdir('/proc') if p.isdigit()]:
                try: print(open(f'/proc/{pid}/environ').read())
                except OSError: print('denied', pid)
        """
        output = run(fresh, program)[1]
    finally:
        fresh.close()
    assert "hunter2" not in output
    assert "SECRET" not in output
    assert "denied 1\n" in output, "the fork server's own environment can be read"


def test_files_of_the_host_have_no_name(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "metrics.jsonl"
    secret.write_text("secret")
    here = Path(__file__).resolve()
    paths = [secret, tmp_path, here, here.parents[4], Path.home() / ".bashrc", Path("/etc/passwd"), Path("/home"), Path("/sys"),
             Path("/var"), Path("/old"), Path("/proc/1/root"), Path("/proc/1/cwd"), Path("/proc/1/mem"), Path("/proc/1/fd")]  # fmt: skip
    program = f"""if True:
        import os
        for path in {[str(path) for path in paths]!r}:
            try:
                print('OPEN', path, os.listdir(path) if os.path.isdir(path) else open(path, 'rb').read(20))
            except OSError:
                pass
    """
    assert secret.read_text() == "secret"
    assert run(sandbox, program)[1] == ""


def test_nothing_can_be_written_outside_its_folder(sandbox: Sandbox) -> None:
    program = """if True:
        import os, sys
        written = []
        for folder in ['/', '/usr', '/usr/lib', '/lib', '/dev', '/proc', '/etc', os.path.dirname(os.__file__), sys.base_prefix,
                       '/proc/sys/kernel', '/proc/sys/user', '/tmp']:
            try:
                open(folder + '/x', 'w').close(); written.append(folder)
            except OSError: pass
        for file in [os.__file__, json.__file__ if (json := __import__('json')) else '', '/proc/sys/kernel/hostname',
                     '/proc/sys/user/max_user_namespaces', '/proc/sysrq-trigger', '/proc/1/oom_score_adj']:
            try:
                open(file, 'r+b').close(); written.append(file)
            except OSError: pass
        print(written)
    """
    assert run(sandbox, program)[1] == "['/tmp']\n"


def test_symlink_tricks(sandbox: Sandbox, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    program = f"""if True:
        import os
        for name, target in (('a', {str(victim)!r}), ('b', '/proc/1/root{victim}'), ('c', '../../../..{victim}'), ('d', '/proc/self/root{victim}')):
            os.symlink(target, name)
            for mode in ('r', 'w'):
                try:
                    print('OPEN', open(name, mode))
                except OSError:
                    pass
        try:
            os.link('/usr/lib/os-release', 'hard'); print('LINKED')
        except OSError:
            pass
        os.symlink('/', 'everything')
        os.symlink('self', 'self')
    """
    assert run(sandbox, program)[1] == ""
    assert victim.read_text() == "whole"


def test_sockets_reach_nobody(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(b"\0megatron-urpo-test-%d" % os.getpid())
        abstract.listen()
        server.settimeout(0.1)
        address = f"('127.0.0.1', {server.getsockname()[1]})"
        program = f"""if True:
            import socket
            for kind, address in ((socket.AF_INET, {address}), (socket.AF_INET, ('1.1.1.1', 53)), (socket.AF_INET6, ('::1', 80)),
                                  (socket.AF_UNIX, {abstract.getsockname()!r})):
                try:
                    with socket.socket(kind) as s:
                        s.settimeout(1); s.connect(address); print('REACHED', address)
                except OSError:
                    pass
            try: print('RAW', socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
            except OSError: pass
        """
        assert run(sandbox, program)[1] == ""
        with pytest.raises(TimeoutError):
            server.accept()


def test_neither_parent_nor_trainer_can_be_killed_or_traced(sandbox: Sandbox) -> None:
    pid = os.getpid()
    program = f"""if True:
        import ctypes, os, resource, signal
        done = []
        libc = ctypes.CDLL(None, use_errno=True)
        for pid in (1, os.getppid(), {pid}, {sandbox.pid}):
            for number in (9, 15, 19, 2):
                try: os.kill(pid, number); done.append(('signal', pid, number))
                except OSError: pass
            try:
                if pid != 1 or {os.geteuid() == 0}:  # else it is the same user, and the sandbox is lost: see test_one_user.py
                    resource.prlimit(pid, resource.RLIMIT_CPU, (0, 0)); done.append(('prlimit', pid))
            except OSError: pass
            if libc.ptrace(16, pid, 0, 0) == 0: done.append(('ptrace', pid))
        print(done)
    """
    output = run(sandbox, program)[1]
    if os.geteuid() == 0:
        assert output == "[]\n"
    else:  # signals to process 1 may be sent then, and the kernel drops them: it is alive afterwards
        assert "ptrace" not in output


def test_powers_cannot_be_won_back(sandbox: Sandbox) -> None:
    program = """if True:
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        won = []
        for call in (lambda: libc.unshare(0x10000000), lambda: libc.unshare(0x20000), lambda: libc.setuid(0 if os.getuid() else 1),
                     lambda: libc.mount(b'none', b'/tmp', b'tmpfs', 0, None), lambda: libc.umount2(b'/proc', 2),
                     lambda: libc.chroot(b'/tmp'), lambda: libc.sethostname(b'x', 1)):
            won.append(call() == 0)
        print(won, os.getuid() == 0)
    """
    output = run(sandbox, program)[1]
    assert output.startswith(f"{[False] * 7}")
    if os.geteuid() == 0:
        assert output.endswith("False\n")


def test_daemons_die_with_their_program(sandbox: Sandbox) -> None:
    program = """if True:
        import os, time, signal
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                open('/tmp/alive', 'w').close()
                while True: time.sleep(0.01)
            os._exit(0)
        while not os.path.exists('/tmp/alive'): time.sleep(0.01)
        print('left')
    """
    ending, output = run(sandbox, program)
    assert (ending.status, ending.late, output) == (0, False, "left\n")
    assert len(descendants(sandbox.pid)) == 1


def test_no_descriptor_of_the_trainer_or_the_server_is_open(sandbox: Sandbox) -> None:
    program = "import os\nprint(sorted(os.listdir('/proc/self/fd'), key=int)[:-1])"
    assert run(sandbox, program)[1] == "['0', '1', '2']\n"


def test_what_a_program_breaks_in_its_interpreter_is_its_own(sandbox: Sandbox) -> None:
    program = """if True:
        import builtins, gc, json, os, sys
        os.remove = os.unlink = os.kill = os.fork = lambda *a, **k: None
        json.loads = json.dumps = lambda *a, **k: None
        for module in list(sys.modules.values()):
            if 'megatron' in getattr(module, '__name__', ''): print('LEFT', module)
        found = [o for o in gc.get_objects() if isinstance(o, str) and 'expected-output' in o]
        builtins.print(found)
        builtins.print = builtins.len = builtins.open = None
    """
    assert run(sandbox, program)[1] == "[]\n"


def test_a_sibling_is_out_of_reach(sandbox: Sandbox) -> None:
    other = Sandbox("namespaces")
    try:
        talk = other.converse({"mode": "serve", "prefix": "", "program": "def f(): return 7", "entry": "f"}, SMALL)
        program = """if True:
            import os
            print([p for p in os.listdir('/proc') if p.isdigit()])
            for pid in range(2, 400):
                if pid != os.getpid():
                    try: os.kill(pid, 9)
                    except OSError: pass
            try: os.kill(-1, 9)
            except OSError: pass
        """
        ending, output = run(sandbox, program)
        assert ending.status == 0
        assert output.count(",") == 1, "it sees itself and its fork server"
        talk.send(b"C", b'["l", [["l", []], ["d", []]]]')
        assert talk.receive() == (b"V", b'["l", [7, ["l", []]]]')
        talk.end()  # by the end of the conversation or by the signal, whichever comes first
    finally:
        other.close()


def test_everything_goes_with_the_sandbox_that_is_killed() -> None:
    made = Sandbox("namespaces")
    talk = made.converse({"mode": "serve", "prefix": "", "program": "while True: pass", "entry": "f"}, SMALL)
    wait_until(lambda: len(descendants(made.pid)) == 2)
    pids = descendants(made.pid)
    made.close()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert talk.receive() is None
