"""The Dockerfile without an engine: it parses, a linter finds nothing, and its versions are those of other places."""

import re
import subprocess
import sys
from pathlib import Path

import dockerfile
import pytest

from megatron_urpo.doctor.checks import OLDEST_SERVERS
from megatron_urpo.doctor.facts import read_pins
from megatron_urpo.inference.sglang.accept import OLDEST_VERSION

ROOT = Path(__file__).parent.parent
PINS = read_pins(ROOT / "constraints" / "cpu.txt")


def default_of(argument: str) -> str:
    values = re.findall(rf"^ARG {argument}=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert len(values) == 1, f"ARG {argument} has one default"
    return str(values[0])


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def test_buildkit_reads_it() -> None:
    commands = dockerfile.parse_file(str(ROOT / "Dockerfile"))
    stages = [command.value[2] for command in commands if command.cmd.upper() == "FROM"]
    assert stages == ["base", "trainer", "test", "server"]
    (user,) = [command.value[0] for command in commands if command.cmd.upper() == "USER"]
    assert int(user) > 0, "not root"


def test_a_linter_finds_nothing() -> None:
    program = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([program, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_place_names_the_same_torch() -> None:
    script = re.search(r"^TORCH_VERSION=(\S+)$", (ROOT / "scripts" / "environment.sh").read_text(), re.MULTILINE)
    assert script is not None
    assert default_of("TORCH_VERSION") == script[1] == PINS["torch"]


def test_every_place_names_the_same_sglang() -> None:
    servers = read_pins(ROOT / "scripts" / "sglang_cpu" / "requirements.txt")
    assert default_of("SGLANG_VERSION") == servers["sglang"]
    (bound,) = re.findall(r'"sglang>=([\d.]+)"', (ROOT / "setup.py").read_text())
    assert numbers(bound) == OLDEST_VERSION == OLDEST_SERVERS["sglang"]
    assert numbers(servers["sglang"]) >= OLDEST_VERSION


def test_the_package_and_the_constraints_agree() -> None:
    """What setup.py pins exactly is what was tested, and everything it asks for has a tested version."""
    text = (ROOT / "setup.py").read_text()
    for name, version in re.findall(r'"([\w.-]+)==([\d.]+)"', text):
        assert PINS[name] == version
    block = re.search(r"install_requires=\[(.*?)\]", text, re.DOTALL)
    assert block is not None
    for name in re.findall(r'"([\w.-]+?)(?:[=><]=[\d.]+)?",', block[1]):
        assert name in PINS, f"{name} has no tested version in constraints/cpu.txt"


@pytest.mark.parametrize("folder", ["megatron_urpo", "constraints", "scripts", "examples", "tests", "docs"])
def test_nothing_that_is_copied_is_ignored(folder: str) -> None:
    assert folder not in (ROOT / ".dockerignore").read_text().splitlines()
