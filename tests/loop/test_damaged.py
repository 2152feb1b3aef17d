"""A damaged checkpoint is refused by name, with the one before it and how to go on from there; and that works."""

import json
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from megatron_urpo.cli import main
from megatron_urpo.policy.durable import file_facts
from megatron_urpo.policy.parallel import close_parallel
from tests.loop.runs import CONFIG, metrics, train
from tests.support.miniature import Miniature

VALUES = {"num_steps": 3, "checkpoint.every": 1, "checkpoint.keep_last": 3}


@pytest.fixture(scope="module")
def saved(miniature: Miniature, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(miniature, tmp_path_factory.mktemp("saved") / "run", **VALUES)


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """The run, the test's own to damage."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


@pytest.fixture(autouse=True)
def _leave_process_groups() -> Iterator[None]:
    yield
    close_parallel()


def refusal(miniature: Miniature, run: Path) -> str:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = CliRunner().invoke(main, ["train", str(CONFIG), *miniature.overrides(run, **VALUES)])
    assert result.exit_code == 2, result.exception
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line


def newest(run: Path) -> Path:
    return run / "checkpoints" / "step_000003"


def flip(path: Path) -> None:
    """One bit in the middle: the length stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def rewrite(path: Path, content: bytes) -> None:
    """As its run would have: the manifest agrees."""
    path.write_bytes(content)
    manifest = path.parent.parent / "manifest.json"
    values = json.loads(manifest.read_text())
    name = str(path.relative_to(manifest.parent))
    facts = file_facts(path)
    values["files"][name] = {"num_bytes": facts.num_bytes, "sha256": facts.sha256}
    manifest.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("policy/__0_0.distcp", flip, "is damaged: the checksum of policy/__0_0.distcp"),
        ("policy/.metadata", flip, "is damaged: the checksum of policy/.metadata"),
        ("random/rank_00000.safetensors", flip, "is damaged: the checksum of random/rank_00000.safetensors"),
        ("policy/common.pt", Path.unlink, "is incomplete: policy/common.pt is missing"),
        ("policy/__0_0.distcp", lambda path: path.write_bytes(path.read_bytes()[:-1]), "__0_0.distcp is truncated"),
        ("manifest.json", Path.unlink, "has no manifest.json"),
    ],
)
def test_it_names_the_one_before_and_the_way_there(
    miniature: Miniature, run: Path, name: str, damage: Callable[[Path], object], words: str
) -> None:
    damage(newest(run) / name)
    flip(run / "checkpoints" / "step_000002" / "policy" / "__0_0.distcp")  # not whole either
    line = refusal(miniature, run)
    assert words in line
    way = f"mv {newest(run)} {newest(run)}.damaged"
    assert line.endswith(f"the newest whole one before it is step_000001: to go on from there, {way}")


def test_the_way_leads_on(miniature: Miniature, saved: Path, run: Path) -> None:
    flip(newest(run) / "policy" / "__0_0.distcp")
    command = refusal(miniature, run).partition("to go on from there, ")[2].split()
    subprocess.run(command, check=True)
    train(miniature, run, **VALUES)
    assert metrics(run) == metrics(saved)


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["policy/.metadata", "policy/common.pt"])
def test_a_pickle_that_runs_a_program_is_refused(miniature: Miniature, run: Path, tmp_path: Path, name: str) -> None:
    """With a manifest that agrees: whoever can write the one can write the other."""
    harm = tmp_path / "harm"
    path = newest(run) / name
    if name == "policy/common.pt":
        torch.save({"optimizer": Harm(harm)}, tmp_path / "evil.pt")
        rewrite(path, (tmp_path / "evil.pt").read_bytes())
    else:
        rewrite(path, pickle.dumps(Harm(harm)))
    assert f"{path} is not what a checkpoint is made of" in refusal(miniature, run)
    assert not harm.exists()
