# ruff: noqa: E501 (programs read better on their own lines)
"""What a program may use up, tried by real programs in a real sandbox, which must then serve the next one.

The limits are small, so that an attack that worked would be seen and would not hurt: the limit on processes does not bind
the host's root, for one, and a fork bomb would be the worst way to find out.
"""

import time
from dataclasses import replace

import pytest

from megatron_urpo.reward.verifiable.code.sandbox import Sandbox
from tests.support.programs import FORKS, SECONDS_TO_SPARE, SMALL, needs_namespaces, run

pytestmark = needs_namespaces


def test_the_number_of_processes_is_bounded_and_a_fork_bomb_dies(sandbox: Sandbox) -> None:
    ending, output = run(sandbox, f"{FORKS}print(n, flush=True)")
    assert ending.status == 0
    assert int(output) == SMALL.processes - 1
    ending, _ = run(sandbox, "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass")
    assert ending.late or ending.status < 0


def test_threads_count_as_processes(sandbox: Sandbox) -> None:
    program = """if True:
        import threading, time
        n = 0
        try:
            while n < 40:
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); n += 1
        except RuntimeError:
            print(n)
    """
    assert int(run(sandbox, program)[1]) == SMALL.processes - 1


def test_memory_bomb(sandbox: Sandbox) -> None:
    ending, output = run(sandbox, "try: x = bytearray(200 << 20)\nexcept MemoryError: print('bounded')")
    assert (ending.status, output) == (0, "bounded\n")
    assert run(sandbox, "x = []\nwhile True: x.append(bytearray(1 << 20))")[0].status == 1
    mapped = "import mmap\ntry: mmap.mmap(-1, 200 << 20)\nexcept (MemoryError, OSError): print('bounded')"
    assert run(sandbox, mapped)[1] == "bounded\n"


SPREAD = """if True:
    import os, time
    held = bytearray(80 << 20)
    held[::4096] = bytes(len(held) // 4096)  # pages count once they are written
    for n in range(3):
        if os.fork() == 0:
            {child}
            open(f'{{n}}', 'w').close()
            time.sleep(60)
    while len([name for name in os.listdir('.') if name.isdigit()]) < 3: time.sleep(0.01)
    time.sleep({seconds})
    print('held')
"""
PATIENT = replace(SMALL, seconds=30.0)  # so that on a busy machine it is not the clock that ends it


def test_a_memory_bomb_spread_over_processes_dies(sandbox: Sandbox) -> None:
    program = SPREAD.format(child="held[::4096] = b'x' * (len(held) // 4096)", seconds=60)
    ending, output, _ = sandbox.run(program, "", PATIENT)
    assert (ending.status, ending.late, output) == (-9, False, b"")


def test_memory_that_processes_share_counts_once(sandbox: Sandbox) -> None:
    ending, output, _ = sandbox.run(SPREAD.format(child="sum(held[::4096])", seconds=0.5), "", PATIENT)
    assert (ending.status, output) == (0, b"held\n")


def test_files_are_bounded_one_by_one_and_together(sandbox: Sandbox) -> None:
    program = """if True:
        import os, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        total = 0
        for n in range(30):
            try:
                with open(f'/tmp/{n}', 'wb', buffering=0) as file:
                    while True:
                        total += file.write(bytes(1 << 20))
            except OSError as error:
                pass
        print(total >> 20, flush=True)
    """
    assert 2 <= int(run(sandbox, program)[1]) <= SMALL.file_mib * 4


def test_ten_gigabytes_of_output(sandbox: Sandbox) -> None:
    start = time.monotonic()
    program = "import os\nblock = bytes(1 << 20)\nfor _ in range(10 << 10): os.write(1, block)"
    ending, output, too_much = sandbox.run(program, "", SMALL)
    assert too_much
    assert ending.late
    assert len(output) == SMALL.output_bytes
    assert time.monotonic() - start < SECONDS_TO_SPARE


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1000, 1000))\nwhile True: pass",
    ],
    ids=["loop", "ignores the signal", "raises the limit"],
)
def test_endless_loop(sandbox: Sandbox, program: str) -> None:
    ending, _ = run(sandbox, program)
    assert ending.status != 0
    assert ending.cpu_seconds < SMALL.cpu_seconds + 1.5


def test_sleep_is_ended_by_the_wall_clock(sandbox: Sandbox) -> None:
    ending, output = run(sandbox, "import time, signal\nfor n in range(1, 32):\n    "
                         "try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\ntime.sleep(1000)\nprint(1)")  # fmt: skip
    assert ending.late
    assert ending.status == -9
    assert output == ""
