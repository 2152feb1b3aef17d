"""Saves of a real policy: the copy, the commit and its order on disk, what is kept, and what a full disk does."""

import json
import os
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

from megatron_urpo.checkpoints.manifest import check_contents, kept_checkpoints, read_manifest
from megatron_urpo.checkpoints.saving import Saver
from megatron_urpo.checkpoints.state import RunState, load_checkpoint, newest_checkpoint
from megatron_urpo.config import Config
from megatron_urpo.config.data import DataConfig
from megatron_urpo.config.model import ModelConfig, OptimizerConfig, ParallelConfig
from megatron_urpo.config.schema import CheckpointConfig
from megatron_urpo.health import Health
from megatron_urpo.policy.checkpoint import copy_policy, load_policy
from megatron_urpo.policy.packing import TokenSequence
from megatron_urpo.policy.parallel import Parallel
from megatron_urpo.policy.policy import Policy, build_policy
from megatron_urpo.policy.supervised import supervised_step
from megatron_urpo.protocols import SaveFailed
from tests.support.full_disk import full_disk
from tests.support.models import make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = tmp_path_factory.mktemp("model")
    make_model(folder, "qwen2")
    return ModelConfig(path=folder, dtype="float32")


@pytest.fixture
def policy(model: ModelConfig, parallel: Parallel) -> Policy:
    return build_policy(model, OptimizerConfig(lr=1e-3), ParallelConfig(), parallel, 10, 1)


def make_config(run: Path, model: ModelConfig, **checkpoint: Any) -> Config:
    data = DataConfig(train=(run / "train.jsonl",))
    return Config(run_dir=run, model=model, data=data, checkpoint=CheckpointConfig(**checkpoint))


def train_a_step(policy: Policy) -> None:
    supervised_step(policy, [TokenSequence(tuple(range(1, 20)), 1, {"weights": [1.0] * 18})], 64)


def state(step: int) -> RunState:
    return RunState(step, Health(empty_steps=step), {"position": step})


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.export()}


def test_what_is_saved_is_the_state_of_the_call_whatever_is_trained_meanwhile(
    policy: Policy, model: ModelConfig, tmp_path: Path
) -> None:
    train_a_step(policy)
    before = weights(policy)
    with Saver(make_config(tmp_path, model), policy, 0) as saver:
        saver.save(state(1))
        torch.rand(3)
        train_a_step(policy)
        train_a_step(policy)
        drawn = [torch.rand(3)]
        with get_cuda_rng_tracker().fork("model-parallel-rng"):
            drawn.append(torch.rand(3))
    folder = newest_checkpoint(tmp_path)
    assert folder is not None
    torch.manual_seed(5)
    with get_cuda_rng_tracker().fork("model-parallel-rng"):
        torch.rand(7)
    assert load_checkpoint(folder, policy) == state(1)
    after = weights(policy)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    torch.rand(3)
    assert torch.equal(torch.rand(3), drawn[0])
    with get_cuda_rng_tracker().fork("model-parallel-rng"):
        assert torch.equal(torch.rand(3), drawn[1])


def test_what_is_written_is_a_copy(policy: Policy, tmp_path: Path) -> None:
    """The thread may come to write long after the loop has trained on."""
    train_a_step(policy)
    before = weights(policy)
    parts = copy_policy(policy, tmp_path)
    train_a_step(policy)
    train_a_step(policy)
    parts.write()
    parts.finish()
    further = weights(policy)
    # The optimizer's own copy is what a load goes on with; the model's weights are what converters read.
    kept = dist_checkpointing.load_plain_tensors(str(tmp_path))
    assert torch.equal(kept["decoder.final_layernorm.weight"], before["model.norm.weight"])
    load_policy(policy, tmp_path)
    after = weights(policy)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    # So are both moments of AdamW and its count of steps, and the schedule, which sets the rate of the step after next.
    train_a_step(policy)
    train_a_step(policy)
    assert all(torch.equal(tensor, further[name]) for name, tensor in weights(policy).items())


def test_it_is_committed_by_the_loop_once_all_is_written(policy: Policy, model: ModelConfig, tmp_path: Path) -> None:
    with Saver(make_config(tmp_path, model), policy, 0) as saver:
        saver.save(state(4))
        assert kept_checkpoints(tmp_path) == {}
        (folder,) = (tmp_path / "checkpoints").iterdir()
        assert folder.name == "step_000004.unfinished"
        for thread in threading.enumerate():
            if thread.name == "checkpoint":
                thread.join()
        assert kept_checkpoints(tmp_path) == {}  # written, and not yet looked at
        saver.settle()
        assert list(kept_checkpoints(tmp_path)) == [4]
        saver.save(state(4))  # a run that is told to stop where it has just saved
        assert list((tmp_path / "checkpoints").iterdir()) == [kept_checkpoints(tmp_path)[4]]
    manifest = read_manifest(kept_checkpoints(tmp_path)[4])
    check_contents(kept_checkpoints(tmp_path)[4], manifest, manifest.files)
    files = {str(path.relative_to(kept_checkpoints(tmp_path)[4])) for path in kept_checkpoints(tmp_path)[4].rglob("*")}
    assert files - {"policy", "random", "manifest.json"} == set(manifest.files)


def test_each_thing_is_on_disk_before_what_relies_on_it(policy: Policy, model: ModelConfig, tmp_path: Path) -> None:
    """Every part and its folder are synced before the manifest is, that before the rename, and the rename at last.

    Read off the calls of the system's own functions, in every thread, by their order.
    """
    calls: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and function is os.fsync:
            local = frame.f_locals
            number = local.get("descriptor")
            if number is None:
                own = local.get("metadata_file") or local.get("file") or local["self"]._file
                number = own.fileno()
            calls.append(("fsync", os.path.relpath(os.readlink(f"/proc/self/fd/{number}"), tmp_path / "checkpoints")))
        if event == "c_call" and function is os.rename:
            calls.append(("rename", str(frame.f_locals["self"].name)))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        with Saver(make_config(tmp_path, model), policy, 0) as saver:
            saver.save(state(1))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    beside = "step_000001.unfinished"
    manifest = read_manifest(kept_checkpoints(tmp_path)[1])
    place = calls.index
    renamed = place(("rename", beside))
    for name in manifest.files:
        folder = str(Path(beside, name).parent)
        assert (
            place(("fsync", f"{beside}/{name}"))
            < place(("fsync", folder))
            < place(("fsync", f"{beside}/manifest.json"))
        )
    last_of_folder = len(calls) - 1 - calls[::-1].index(("fsync", beside))
    assert place(("fsync", f"{beside}/manifest.json")) < last_of_folder < renamed < place(("fsync", "."))


def test_the_newest_and_every_so_many_are_kept(policy: Policy, model: ModelConfig, tmp_path: Path) -> None:
    config = make_config(tmp_path, model, keep_last=2, keep_every=3)
    with Saver(config, policy, 0) as saver:
        for step in range(9):  # at step 0 there is nothing that a new start would not give
            saver.save(state(step))
    assert list(kept_checkpoints(tmp_path)) == [3, 6, 7, 8]
    (tmp_path / "checkpoints" / "step_000009.unfinished").mkdir()
    (tmp_path / "checkpoints" / "step_000005.removed").mkdir()
    with Saver(config, policy, 8):
        pass
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        f"step_{step:06d}" for step in (3, 6, 7, 8)
    ]


@pytest.mark.parametrize("background", [True, False])
def test_a_disk_without_room_ends_the_run_with_rank_and_path(
    policy: Policy, model: ModelConfig, tmp_path: Path, background: bool
) -> None:
    config = make_config(tmp_path, model, background=background)
    with Saver(config, policy, 0) as saver:
        saver.save(state(1))
    with full_disk(100_000), pytest.raises(SaveFailed) as caught, Saver(config, policy, 1) as saver:
        saver.save(state(2))
    beside = tmp_path / "checkpoints" / "step_000002.unfinished"
    words = f"rank 0: OSError: [Errno 27] File too large: '{beside}/policy/__0_0.distcp'"
    assert words in str(caught.value)
    assert f"the newest checkpoint is {kept_checkpoints(tmp_path)[1]}" in str(caught.value)
    assert list((tmp_path / "checkpoints").iterdir()) == [kept_checkpoints(tmp_path)[1]]


def test_the_manifest_tells_the_model_the_layout_and_the_config(
    policy: Policy, model: ModelConfig, tmp_path: Path
) -> None:
    with Saver(make_config(tmp_path, model), policy, 0) as saver:
        saver.save(state(1))
    values = json.loads((kept_checkpoints(tmp_path)[1] / "manifest.json").read_text())
    assert values["layout"] == {
        "tensor": 1, "pipeline": 1, "data": 1, "distributed_optimizer": True, "dtype": "float32", "spec": "torch",
    }  # fmt: skip
    assert values["shape"]["hidden_size"] == 64
    assert values["config"]["model"]["path"] == str(model.path)
    assert len(values["config_fingerprint"]) == 32
