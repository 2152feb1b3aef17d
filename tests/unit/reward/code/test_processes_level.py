"""The weakest level: limits, no inheritance, nothing left behind. And a host where there is no other."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_urpo.reward.verifiable.code.sandbox import Sandbox
from tests.support.programs import FORKS, SMALL, descendants


@pytest.fixture(scope="module")
def shared() -> Iterator[Sandbox]:
    os.environ["SECRET_TOKEN"] = "hunter2"
    made = Sandbox("processes")
    del os.environ["SECRET_TOKEN"]
    yield made
    made.close()


@pytest.fixture
def sandbox(shared: Sandbox) -> Iterator[Sandbox]:
    yield shared
    assert shared.alive
    assert descendants(shared.pid) == set()
    ending, output, _ = shared.run("import os; print(os.listdir('.'), input())", "next", SMALL)
    assert (ending.status, output) == (0, b"[] next\n")


def test_daemons_die_and_the_folder_goes(sandbox: Sandbox) -> None:
    program = """if True:
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                open('alive', 'w').close()
                while True: time.sleep(0.01)
            os._exit(0)
        while not os.path.exists('alive'): time.sleep(0.01)
        print(os.getcwd())
    """
    ending, output, _ = sandbox.run(program, "", SMALL)
    assert (ending.status, ending.late) == (0, False)
    assert not Path(output.decode().strip()).exists()


def test_limits_hold(sandbox: Sandbox) -> None:
    assert sandbox.run("x = bytearray(200 << 20)", "", SMALL)[0].status == 1
    assert sandbox.run("while True: pass", "", SMALL)[0].cpu_seconds < SMALL.cpu_seconds + 1.5
    assert sandbox.run("import time; time.sleep(1000)", "", SMALL)[0].late
    assert sandbox.run("open('x', 'wb').write(bytes(3 << 20))", "", SMALL)[0].status != 0
    assert sandbox.run("import os\nwhile True: os.write(1, bytes(1 << 16))", "", SMALL)[2]


def test_nothing_is_inherited(sandbox: Sandbox) -> None:
    program = "import os\nprint(dict(os.environ), sorted(os.listdir('/proc/self/fd'), key=int)[:-1])"
    output = sandbox.run(program, "", SMALL)[1].decode()
    assert "hunter2" not in output
    assert output.endswith("['0', '1', '2']\n")
    secret = "import os\nprint(open(f'/proc/{os.getppid()}/environ').read())"
    assert sandbox.run(secret, "", SMALL)[0].status == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives programs a user of their own here")
def test_under_root_programs_are_another_user_whose_processes_are_counted(sandbox: Sandbox) -> None:
    user, count = sandbox.run(f"{FORKS}print(os.getuid(), n)", "", SMALL)[1].split()
    assert int(user) != 0
    assert int(count) < 40


def test_python_below_tmp_is_refused_with_the_reason() -> None:
    root = str(Path(__file__).parents[4])
    program = f"""if True:
        import sys
        sys.path.append({root!r})
        from megatron_urpo.reward.verifiable.code.inside import isolation
        sys.base_prefix = '/tmp/python'
        isolation.enter_namespaces()
    """
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True)
    assert "installed in /tmp/python" in done.stderr
    assert "install it elsewhere" in done.stderr
