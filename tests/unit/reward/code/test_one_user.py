"""Where the fork server and its programs are one user: under an ordinary user, and where root has no other."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import FORKS, needs_namespaces

ROOT = Path(__file__).parents[4]

# Python and the package at places that every user may read, wherever they are installed.
AS_ORDINARY_USER = """
mount -t tmpfs none /mnt && mkdir /mnt/python /mnt/package && chmod 755 /mnt &&
mount --rbind "$1" /mnt/python && mount --rbind "$2" /mnt/package && cd /mnt/package &&
exec setpriv --reuid 12345 --regid 12345 --clear-groups "/mnt/python/bin/$3" -c "$4"
"""

ATTACKS = """if True:
    import json, sys
    sys.path.insert(0, '')
    from megatron_urpo.reward.verifiable.code.sandbox import Limits, Sandbox
    sandbox = Sandbox("namespaces")
    small = Limits(seconds=30.0, cpu_seconds=1.0, memory_mib=128, processes=6, file_mib=2, output_bytes=1 << 20)
    for attack in json.loads(sys.stdin.read()):
        ending, output, _ = sandbox.run(attack, "", small)
        print(json.dumps([ending.status, ending.late, output.decode()]))
    sandbox.close()
"""

MEMORY = """if True:
    import os, time
    held = bytearray(80 << 20)
    for _ in range(2): os.fork()
    held[::4096] = b'x' * (len(held) // 4096)
    time.sleep(60)
"""
POWERS = """if True:
    import ctypes, os
    libc = ctypes.CDLL(None)
    won = [libc.unshare(0x10000000), libc.unshare(0x20000), libc.mount(b'none', b'/tmp', b'tmpfs', 0, None), libc.chroot(b'/tmp')]
    for name in ('/proc/1/environ', '/proc/1/mem', '/proc/1/fd', '/etc/passwd', '/mnt/package'):
        try: won.append(os.listdir(name) if os.path.isdir(name) else open(name, 'rb').read(9))
        except OSError: pass
    try: os.kill(1, 9)
    except OSError: pass
    print(won)
"""  # noqa: E501


@needs_namespaces
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; under one, all other tests are this")
def test_attacks_on_a_trainer_that_runs_as_an_ordinary_user() -> None:
    attacks = [f"{FORKS}print(n)", MEMORY, POWERS, "import os; print(os.listdir('/tmp'))"]
    place = [sys.base_prefix, str(ROOT), f"python{sys.version_info.major}.{sys.version_info.minor}"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", AS_ORDINARY_USER, "sh", *place, ATTACKS],
        input=json.dumps(attacks), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    outputs = ["5\n", "", "[-1, -1, -1, -1]\n", "[]\n"]
    assert answers == [[-9 * (not output), False, output] for output in outputs], done.stderr


ONE_USER = """if True:
    from megatron_urpo.reward.verifiable.code.sandbox import Sandbox, SandboxLost
    from tests.support.programs import SMALL
    sandbox = Sandbox("namespaces")
    print(sandbox.run("import os; print(os.getuid(), os.getppid())", "", SMALL)[1])
    try:
        print(sandbox.run("import resource; resource.prlimit(1, resource.RLIMIT_NOFILE, (30, 30))", "", SMALL))
    except SandboxLost:
        print("lost")
    sandbox.close()
"""


@needs_namespaces
@pytest.mark.skipif(shutil.which("unshare") is None, reason="no program `unshare` to make a place of one user with")
def test_a_program_that_shares_its_servers_user_cannot_spoil_the_next_one() -> None:
    command = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc", sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "-c", ONE_USER], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["b'0 1\\n'", "lost"], done.stderr
