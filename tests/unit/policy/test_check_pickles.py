"""Pickles of a `torch_dist` folder: what a checkpoint is made of passes, everything else is refused and never runs."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint.metadata import MetadataIndex

from megatron_urpo.config import ConfigError
from megatron_urpo.policy.safe_pickle import check_pickles


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.mkdir, (self.path,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tensor and an object, written by torch itself."""
    state = {"weight": torch.ones(3, dtype=torch.bfloat16), "object": 3}
    checkpoint.save(state, checkpoint_id=tmp_path / "policy", no_dist=True)
    torch.save({"scheduler": {"num_steps": 1}}, tmp_path / "policy" / "common.pt")
    return tmp_path / "policy"


def index_of(folder: Path) -> Any:
    return pickle.loads((folder / ".metadata").read_bytes())


def in_the_index(folder: Path, harm: Harm) -> Path:
    index = index_of(folder)
    index.planner_data = harm
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    return folder / ".metadata"


def in_common(folder: Path, harm: Harm) -> Path:
    torch.save({"scheduler": harm}, folder / "common.pt")
    return folder / "common.pt"


def in_a_part(folder: Path, harm: Harm) -> Path:
    """Behind what the part holds; the index leads there."""
    index = index_of(folder)
    place = index.storage_data[MetadataIndex("object")]
    part = folder / place.relative_path
    place.offset = part.stat().st_size
    with part.open("ab") as file:
        torch.save(harm, file)
    place.length = part.stat().st_size - place.offset
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    return part


def test_what_torch_writes_is_admitted(folder: Path) -> None:
    check_pickles(folder)


@pytest.mark.parametrize("put", [in_the_index, in_common, in_a_part])
def test_a_program_is_refused_by_file_and_never_runs(
    folder: Path, tmp_path: Path, put: Callable[[Path, Harm], Path]
) -> None:
    harm = tmp_path / "harm"
    file = put(folder, Harm(harm))
    with pytest.raises(ConfigError, match=f"^run_dir: {file} is not what a checkpoint is made of"):
        check_pickles(folder)
    assert not harm.exists()


def test_a_part_outside_the_folder_is_refused(folder: Path) -> None:
    index = index_of(folder)
    place = index.storage_data[MetadataIndex("object")]
    (folder.parent / "part").write_bytes((folder / place.relative_path).read_bytes())
    place.relative_path = "../part"
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(ConfigError, match="points out of the folder"):
        check_pickles(folder)
