"""The Triton kernels without a GPU: their numbers from the interpreter, their code from the compiler.

How fast they are and whether a GPU's results are the same is for scripts/gpu_check.sh to say.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from megatron_urpo.policy import logprobs_triton
from megatron_urpo.policy.logprobs import token_logprobs
from tests.unit.policy.worker_triton import CASES

ROOT = Path(__file__).parent.parent.parent.parent
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes for one program. Source: CUDA C++ Programming Guide, technical specifications per compute capability."""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.unit.policy.worker_triton"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("case", [*CASES, "two shards", "a shard of padding alone"])
def test_interpreted_kernels_equal_float64_within_rounding(found: dict[str, Any], case: str) -> None:
    assert set(found[case]) == {"logprob", "entropy", "grad_hidden", "grad_weight"}
    for name, part_of_allowed in found[case].items():
        assert part_of_allowed <= 1, f"{name} is {part_of_allowed:.2g} times as far off as rounding explains"


def test_no_tokens(found: dict[str, Any]) -> None:
    assert found["no tokens"] == [[0], [0], [0, 4], 0.0]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kernel", ["_sums_kernel", "_gradient_kernel"])
def test_kernels_compile_for_gpus(
    kernel: str, dtype: torch.dtype, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A100 and H100: machine code is made, fits in shared memory, and bfloat16 goes to the tensor cores."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(logprobs_triton, kernel)
    tile = logprobs_triton._tile(dtype)
    options = {name: tile.pop(name) for name in ("num_warps", "num_stages")}
    values = {"hidden": dtype, "weight": dtype, "grad": dtype, "local": torch.int64}
    integers = ("num_tokens", "num_words", "size", "words_per_part")
    words = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.int64: "i64"}
    signature = {
        name: "constexpr"
        if name in tile
        else "i32"
        if name in integers
        else "*" + words[values.get(name, torch.float32)]
        for name in function.arg_names
    }
    # As the launcher finds them for real shapes: addresses and the hidden size are multiples of 16.
    even = [index for index, (name, kind) in enumerate(signature.items()) if kind[0] == "*" or name == "size"]
    multiples = {(index,): [["tt.divisibility", 16]] for index in even}
    source = ASTSource(function, signature, constexprs=tile, attrs=multiples)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= SHARED_MEMORY[capability]
    if dtype == torch.bfloat16:
        assert {80: "mma.sync", 90: "wgmma.mma_async"}[capability] in compiled.asm["ptx"]


def test_tensors_on_a_cpu_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"kernel='triton' runs on CUDA tensors, these are on cpu; use kernel='torch'"):
        token_logprobs(torch.ones(2, 4), torch.ones(5, 4), torch.tensor([0, 1]), 5, kernel="triton")
