"""scripts/gpu_check.sh without a GPU: it says so, and everything but CUDA itself is gone through in small."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts" / "gpu"))

from shapes import SHAPES, model_flops, peak_tflops  # noqa: E402

pytestmark = pytest.mark.timeout(960)  # a minute of work in nine processes, much longer where others share the machine


def gpu_check(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    command = ["bash", "scripts/gpu_check.sh", *arguments]
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """results.json and results.md of a run in small."""
    folder = tmp_path_factory.mktemp("gpu")
    done = gpu_check("--device", "cpu", "--tiny", "--output", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return json.loads((folder / "results.json").read_text()), (folder / "results.md").read_text()


def test_without_a_gpu_it_says_so() -> None:
    done = gpu_check()
    assert done.returncode == 0
    assert "nothing was measured" in done.stdout


@pytest.mark.parametrize(
    ("part", "first", "rows"),
    [
        ("logprobs", "variant", ["whole logits", "torch, in chunks", "triton"]),
        ("update", "shape", ["tiny"]),
        ("parity", "layers", ["torch, float32", "torch, bfloat16"]),
        ("broadcast", "backend", ["gloo"]),
        ("loop", "layers", ["torch, bfloat16"]),
    ],
)
def test_every_part_runs_in_small(tried: tuple[dict[str, Any], str], part: str, first: str, rows: list[str]) -> None:
    found = tried[0]["parts"][part]
    assert found["failures"] == []
    assert [row[first] for row in found["rows"]] == rows
    assert f"## {found['title']}" in tried[1]


def test_results_say_where_they_come_from(tried: tuple[dict[str, Any], str]) -> None:
    assert "--device cpu --tiny" in tried[0]["command"]
    assert tried[0]["device"].startswith("CPU")
    assert tried[0]["parts"]["update"]["rows"][0]["MFU"] is None  # no peak is guessed
    assert tried[0]["parts"]["loop"]["rows"][0]["steps"] == 2


def test_a_failing_part_is_named_and_fails_the_check(tmp_path: Path) -> None:
    """Of two parts the first reads weights and dies where safetensors is broken; the second does not need it."""
    (tmp_path / "safetensors.py").write_text("raise RuntimeError('broken on purpose')\n")
    done = gpu_check(
        "--device", "cpu", "--tiny", "--output", str(tmp_path / "out"), "--parts", "update,logprobs",
        PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 1
    parts = json.loads((tmp_path / "out" / "results.json").read_text())["parts"]
    assert "broken on purpose" in parts["update"]["failures"][0]
    assert parts["logprobs"]["failures"] == []
    assert "FAILED: " in (tmp_path / "out" / "results.md").read_text()


def test_what_the_environment_lacks_is_named(tmp_path: Path) -> None:
    """A Python without site-packages has nothing of what is needed."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    done = gpu_check("--device", "cpu", "--tiny", PYTHON=str(python))
    assert done.returncode == 1
    assert "lacks torch, megatron.core, transformers" in done.stdout


def test_model_flops_by_hand() -> None:
    """One layer, 2 channels, 1 head of keys and of queries, 3 feed-forward channels, 5 words; 4 tokens, 2 predicted.

    Weights: query, key, value and output 4 * 2 * 2 = 16, feed-forward 3 * 2 * 3 = 18; 6 * 34 * 4 = 816. Attention:
    6 * 2 * 4 * 4 = 192. Output: 6 * 2 * 5 * 2 = 120.
    """
    shape = {
        "hidden_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
        "intermediate_size": 3, "vocab_size": 5,
    }  # fmt: skip
    assert model_flops(shape, [(4, 2)]) == 816 + 192 + 120


@pytest.mark.parametrize(("name", "billions"), [("0.5B", 0.36), ("1.5B", 1.31)])
def test_shapes_have_the_parameters_of_their_model_cards(name: str, billions: float) -> None:
    """ "Number of parameters (non-embedding)" of the model cards; a token costs 6 operations for each."""
    weights = model_flops(SHAPES[name] | {"vocab_size": 0}, [(1, 0)]) / 6
    assert abs(weights / 1e9 - billions) < 0.005


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)  # fmt: skip
def test_peaks_are_known_or_not_guessed(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak
