"""docs/clusters.md: every command of ours is understood, every script that it queues is one."""

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from megatron_urpo.cli import main
from megatron_urpo.config.launch import LaunchConfig

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "clusters.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("line", [line for line in COMMANDS if "megatron-urpo " in line])
def test_our_commands_are_understood(line: str) -> None:
    """Parsed, not run: a wrong option or a missing one is a usage error, as one that no command has shows."""
    name, *arguments = shlex.split(line.split("megatron-urpo ", 1)[1])
    assert main.commands[name].make_context(name, list(arguments)).params
    with pytest.raises(click.UsageError, match="--no-such-option"):
        main.commands[name].make_context(name, [*arguments, "--no-such-option"])


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith(("bash ", "sbatch "))])
def test_scripts_can_be_run(line: str) -> None:
    (script,) = re.findall(r"scripts/\S+\.(?:sbatch|sh)", line)
    assert subprocess.run(["bash", "-n", str(ROOT / script)]).returncode == 0


def test_values_of_the_launch_section_are_its_defaults() -> None:
    import yaml

    (block,) = re.findall(r"```yaml\n(launch:.*?)```", TEXT, re.DOTALL)
    values = yaml.safe_load(block)["launch"]
    assert values == {name: value for name, value in LaunchConfig().model_dump().items() if name in values}
