"""The recipes for real models: they load, they plan, and their READMEs say what the plan says."""

import re
from pathlib import Path
from typing import Any

import pytest

from megatron_urpo.config import load_config
from megatron_urpo.planning import Plan, make_plan
from tests.support.shapes import OCTOTHINKER_8B, QWEN3_8B, QWEN25_7B, write_shape

ROOT = Path(__file__).parent.parent
MODELS = {"qwen2.5-7b": QWEN25_7B, "qwen3-8b": QWEN3_8B, "octothinker-8b": OCTOTHINKER_8B}
SERVERS = ",".join(f"http://10.0.0.{node}:{port}" for node in (3, 4) for port in range(30000, 30008))
ON_32 = (
    f"rollout.sglang.urls=[{SERVERS}]",
    "rollout.sglang.flags.mem-fraction-static=0.85",
    "weight_sync.transport=broadcast",
    "weight_sync.address=10.0.0.1",
)


def plan(folder: Path, name: str, gpus: int, *overrides: str) -> Plan:
    model = write_shape(folder, MODELS[name])
    config, _ = load_config(ROOT / "examples" / name / "config.yaml", [*overrides, f"model.path={model}"])
    return make_plan(config, "h100", gpus)


def figures(made: Plan) -> list[str]:
    """The README's column, from the second line on."""

    def gib(size: int) -> str:
        return f"{size / 2**30:.1f} GiB"

    rank = made.fullest
    return [
        gib(rank.states.weights),
        gib(rank.states.gradients),
        gib(rank.states.optimizer),
        gib(rank.peak - rank.states.total),
        gib(rank.peak),
        gib(made.engine_bytes) if made.engine_bytes else "none",
        f"{made.kv_tokens:,}",
        gib(made.sync_bytes),
        str(made.phases[1].micro_batches),
    ]


@pytest.mark.parametrize("name", list(MODELS))
def test_a_recipe_fits_and_its_readme_says_how(tmp_path: Path, name: str) -> None:
    on_8, on_32 = plan(tmp_path, name, 8), plan(tmp_path, name, 16, *ON_32)
    assert on_8.problems == on_32.problems == []
    assert on_32.gpus + on_32.engine.gpus_of_its_own == 32
    text = (ROOT / "examples" / name / "README.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)[2:]
    assert [list(column) for column in zip(*rows, strict=True)] == [figures(on_8), figures(on_32)]
    assert "predictions" in text


@pytest.mark.parametrize("name", list(MODELS))
def test_a_recipe_has_the_methods_hyperparameters(name: str) -> None:
    """Those of the published method, written down here once more."""
    config, _ = load_config(ROOT / "examples" / name / "config.yaml")
    want: dict[str, Any] = {
        "prompts": 256, "group": 8, "temperature": 1.0, "new_tokens": 4096, "lr": 5e-7, "schedule": "cosine",
        "epochs": 4, "clip": (0.2, 0.28), "normalization": "tokens", "kl": 0.0, "until": [100, None],
    }  # fmt: skip
    assert want == {
        "prompts": config.data.prompts_per_step,
        "group": config.rollout.completions_per_prompt,
        "temperature": config.rollout.temperature,
        "new_tokens": config.rollout.max_new_tokens,
        "lr": config.optimizer.lr,
        "schedule": config.optimizer.schedule,
        "epochs": config.loss.epochs,
        "clip": (config.loss.clip_low, config.loss.clip_high),
        "normalization": config.loss.normalization,
        "kl": config.loss.kl_coefficient,
        "until": [phase.until for phase in config.data.curriculum],
    }
    first, second = config.data.curriculum
    assert first.mix == {"preference": 1, "reasoning": 1}
    assert second.mix == {"preference": 1, "reasoning": 1, "instruction": 1}
