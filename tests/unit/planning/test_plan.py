"""The plan of whole runs: figures that a person can check by hand, and each thing that does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from megatron_urpo.cli import main
from megatron_urpo.config import ConfigError
from megatron_urpo.config.load import restore_config
from megatron_urpo.planning import Plan, make_plan
from megatron_urpo.planning.gpus import RESERVE
from megatron_urpo.planning.plan import bucket_sizes
from megatron_urpo.planning.search import layouts
from megatron_urpo.policy.hf.shape import parse_shape
from megatron_urpo.policy.hf.table import hf_shapes
from megatron_urpo.weight_sync.buckets import plan_buckets
from tests.support.shapes import QWEN3_8B, QWEN3_30B_A3B, QWEN25_7B, QWEN25_72B, write_shape

SGLANG: dict[str, Any] = {"num_servers": 8, "first_gpu": 0, "flags": {"mem-fraction-static": 0.4}}
RUN: dict[str, Any] = {
    "run_dir": "run", "data": {"train": ["train.jsonl"]}, "parallel": {"tensor": 4, "sequence": True},
    "rollout": {"engine": "sglang", "sglang": SGLANG}, "weight_sync": {"transport": "tensor"},
    "loss": {"max_tokens_per_micro_batch": 20480},
}  # fmt: skip


def planned(folder: Path, shape: dict[str, Any], gpu: str = "h100", gpus: int = 8, **sections: Any) -> Plan:
    model = {"path": str(write_shape(folder, shape))}
    return make_plan(restore_config({**RUN, "model": model, **sections}), gpu, gpus)


def test_a_7b_model_on_eight_gpus(tmp_path: Path) -> None:
    """Qwen2.5-7B: 7,615,616,512 parameters by its model card's files. At TP 4 all but norms are quartered:

    (7,615,616,512 - 57 * 3584) / 4 + 57 * 3584 = 1,904,057,344 a rank. Weights are 2 bytes each, gradients 4, the
    optimizer's 12 are shared by two data-parallel ranks.
    """
    plan = planned(tmp_path, QWEN25_7B)
    (rank,) = plan.ranks
    assert plan.num_parameters == 7_615_616_512
    assert rank.parameters == (7_615_616_512 - 57 * 3584) // 4 + 57 * 3584 == 1_904_057_344
    assert plan.data == 2
    assert rank.states.weights == pytest.approx(2 * rank.parameters, rel=1e-6)
    assert rank.states.gradients == pytest.approx(4 * rank.parameters, rel=1e-6)
    assert rank.states.optimizer == pytest.approx(12 * rank.parameters / 2, rel=1e-6)
    assert rank.unsharded_optimizer == pytest.approx(12 * rank.parameters, rel=1e-6)
    assert plan.sync_bytes == 2 * plan.num_parameters
    assert plan.engine.weights == 2 * plan.num_parameters
    assert plan.engine.kv_bytes_per_token == 2 * 28 * 4 * 128 * 2
    assert plan.problems == []


def test_a_model_with_experts(tmp_path: Path) -> None:
    """Qwen3-30B-A3B: 30,532,122,624 parameters. At TP 4 all but norms and routers are quartered.

    Each layer of 48 has two norms of 2048, two of 128 and a router of 128 x 2048; one norm is at the end. Recomputed
    whole, a layer keeps its input; for a moment, 8 copies of each token, with 3 x 768 / 4 channels of an expert.
    """
    plan = planned(tmp_path, QWEN3_30B_A3B, gpus=64, parallel={"tensor": 4, "sequence": True, "recompute": "full"})
    (rank,) = plan.ranks
    whole = 48 * (2 * 2048 + 2 * 128 + 128 * 2048) + 2048
    assert plan.num_parameters == 30_532_122_624
    assert rank.parameters == (30_532_122_624 - whole) // 4 + whole == 7_642_626_048
    assert rank.activations.layers == 48 * 20480 * 2048 // 4 * 2
    assert rank.activations.working > 20480 * 8 * (2048 + 3 * 768 // 4) * 2 * 2
    assert {candidate.layout.sequence for candidate in plan.fits if candidate.layout.tensor > 1} == {True}
    with pytest.raises(ConfigError, match=r"parallel\.sequence: must be true"):
        planned(tmp_path, QWEN3_30B_A3B, gpus=64, parallel={"tensor": 4})


def test_a_step_in_words(tmp_path: Path) -> None:
    """128 groups of 8 verdicts of 20,480 tokens and 128 of 8 answers of 8,192, in micro-batches on two ranks."""
    first, second = planned(tmp_path, QWEN25_7B).phases
    assert first.prompts == {"preference": 128.0, "reasoning": 128.0}
    assert first.completions == 2048
    assert first.most_tokens == 128 * 8 * 20480 + 128 * 8 * 8192 == 29_360_128
    assert first.micro_batches == 717
    assert (first.updates, first.verdicts, second.verdicts) == (4, 0, 85)


def test_the_longest_scoring_prompt(tmp_path: Path) -> None:
    scoring = planned(tmp_path, QWEN25_7B).scoring
    assert scoring.longest == 4096 + 8 * 4096
    assert scoring.share == (16384 - 4096) // 8


def test_the_share_that_servers_may_take(tmp_path: Path) -> None:
    """SGLang takes its share of what is free at its start; with the largest, trainer and server fill the GPU."""
    plan = planned(tmp_path, QWEN25_7B)
    rank = plan.fullest
    assert plan.fraction is not None
    free = plan.gpu.memory - rank.at_start
    assert rank.at_start == rank.states.weights + rank.states.gradients + rank.states.masters
    assert rank.peak + RESERVE + plan.fraction * free <= plan.gpu.memory
    assert rank.peak + RESERVE + (plan.fraction + 0.01) * free > plan.gpu.memory
    assert plan.kv_tokens == (int(0.4 * free) - plan.engine.weights) // plan.engine.kv_bytes_per_token


def test_buckets_are_those_of_the_weight_sync() -> None:
    import torch

    shapes = hf_shapes(parse_shape(QWEN3_8B))
    want = [bucket.num_bytes for bucket in plan_buckets(shapes, torch.bfloat16, 512 * 2**20)]
    assert bucket_sizes(shapes, 2, 512 * 2**20) == want


@pytest.mark.parametrize(
    ("shape", "gpus", "sections", "parts"),
    [
        (QWEN25_72B, 8, {}, ["parallel: a GPU of stage 0", "to train", "to generate", "no layout of these GPUs fits"]),
        (
            QWEN25_7B,
            8,
            {"parallel": {"tensor": 1, "recompute": "full"}},
            ["parallel: a GPU of stage 0 needs", "h100 has 79.6 GiB", "use parallel.tensor="],
        ),
        (
            QWEN25_7B,
            8,
            {"rollout": {"engine": "sglang", "sglang": {"num_servers": 8, "first_gpu": 0}}},
            ["rollout.sglang.flags: mem-fraction-static is not given", "at most 0.42"],
        ),
        (
            QWEN25_7B,
            16,
            {"rollout": {"engine": "sglang", "sglang": {**SGLANG, "num_servers": 16}}},
            ["rollout.sglang.num_servers: 16 x tensor 1 = 16 GPUs", "first node", "rollout.sglang.urls"],
        ),
        (
            QWEN25_7B,
            8,
            {"weight_sync": {"transport": "broadcast"}},
            ["weight_sync.transport: broadcast", "NCCL", "use tensor"],
        ),
        (
            QWEN25_7B,
            8,
            {"loss": {"max_tokens_per_micro_batch": 16384}},
            ["loss.max_tokens_per_micro_batch: 16384", "20480", "raise it"],
        ),
        (
            QWEN25_72B,
            64,
            {
                "parallel": {"tensor": 8, "sequence": True, "pipeline": 2, "recompute": "full"},
                "rollout": {"engine": "sglang", "sglang": {"urls": ["http://10.0.0.9:1"], "tensor": 2}},
                "weight_sync": {"address": "10.0.0.1"},
            },
            ["rollout.sglang.tensor: 2 leaves a KV cache of", "one group needs 36,864"],
        ),
    ],
)
def test_what_does_not_fit(
    tmp_path: Path, shape: dict[str, Any], gpus: int, sections: dict[str, Any], parts: list[str]
) -> None:
    (problem,) = [line for line in planned(tmp_path, shape, gpus=gpus, **sections).problems if parts[0] in line]
    assert "\n" not in problem
    for part in parts:
        assert part in problem


def test_what_is_offered_fits(tmp_path: Path) -> None:
    plan = planned(tmp_path, QWEN25_7B, parallel={"tensor": 1, "recompute": "full"})
    assert plan.problems
    for candidate in plan.nearest:
        offered = planned(tmp_path, QWEN25_7B, parallel=candidate.layout.model_dump())
        assert max(rank.peak for rank in offered.ranks) + offered.engine_bytes == candidate.peak
        assert candidate.peak + RESERVE <= offered.gpu.memory
        assert not [line for line in offered.problems if line.startswith("parallel")]


@pytest.mark.parametrize(
    ("gpu", "gpus", "parts"),
    [
        ("h100", 6, ["--gpus: 6", "parallel.tensor 4 x parallel.pipeline 1 = 4 GPUs", "multiple of 4"]),
        ("h100", 2, ["--gpus: 2", "0.50 copies"]),
        ("h10", 8, ["--gpu: 'h10'", "h100"]),
    ],
)
def test_numbers_that_make_no_sense(tmp_path: Path, gpu: str, gpus: int, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        planned(tmp_path, QWEN25_7B, gpu, gpus)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(("gpus", "count"), [(8, 30), (64, 57), (512, 60)])
def test_the_search_looks_at_few_layouts(gpus: int, count: int) -> None:
    """A plan of one takes under a millisecond, so hundreds stay below a second."""
    config = restore_config({**RUN, "model": {"path": "nowhere"}})
    found = list(layouts(parse_shape(QWEN25_72B), gpus, 8, config.parallel))
    assert len(found) == count
    for layout in found:
        assert gpus % (layout.tensor * layout.pipeline) == 0
        assert 80 % layout.pipeline == 0


def run(folder: Path, *arguments: str) -> Result:
    model = write_shape(folder / "model", QWEN25_7B)
    (folder / "config.yaml").write_text(json.dumps({**RUN, "model": {"path": str(model)}}))  # JSON is YAML
    return CliRunner().invoke(main, ["plan", str(folder / "config.yaml"), *arguments])


def test_the_command(tmp_path: Path) -> None:
    shown = run(tmp_path, "--gpu", "h100", "--gpus", "8", "--search")
    assert shown.exit_code == 0, shown.output
    for part in (
        "7.62 billion parameters on 8 h100",
        "1,904,057,344",
        "2,048 completions",
        "layouts of 8 GPUs fit",
        "fits",
    ):
        assert part in shown.output
    tree = json.loads(run(tmp_path, "--json").stdout)
    assert tree["num_parameters"] == 7_615_616_512
    assert tree["ranks"][0]["peak"] > tree["ranks"][0]["states"]["optimizer"] > 0
    full = run(tmp_path, "--gpu", "a100-40")
    assert full.exit_code == 1
    assert "does not fit: parallel" in full.output
    wrong = run(tmp_path, "--gpus", "5")
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("error: --gpus: 5")
