"""What `megatron-urpo plan` predicts of a rank's memory beside what the rank really takes, and how fast it searches.

Each layout is a launch of its own. Measured is the peak resident size of a rank above that after its imports, over
building a policy with random weights and two updates on one full micro-batch of equally long sequences for each
pipeline stage and one more. Predicted are weights, gradients, optimizer and activations; the number of tokens is known
here, so no limits are assumed.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from megatron_urpo.config.model import ModelConfig, OptimizerConfig, ParallelConfig
from megatron_urpo.planning.activations import activations
from megatron_urpo.planning.parameters import stage_parameters
from megatron_urpo.planning.states import states
from megatron_urpo.policy.packing import PackedBatch, TokenSequence
from megatron_urpo.policy.parallel import joined_ranks
from megatron_urpo.policy.policy import build_policy

LENGTH = 256
QWEN2: dict[str, Any] = {"model_type": "qwen2", "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
                         "max_position_embeddings": 4096}  # fmt: skip
MINIATURE = QWEN2 | {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
                     "num_key_value_heads": 2, "vocab_size": 256}  # fmt: skip
EXPERTS = MINIATURE | {"model_type": "qwen3_moe", "moe_intermediate_size": 96, "num_experts": 16,
                       "num_experts_per_tok": 4, "norm_topk_prob": True}  # fmt: skip
HALF_BILLION = QWEN2 | {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936}  # fmt: skip
SEARCHED = QWEN2 | {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64,
                    "num_key_value_heads": 8, "vocab_size": 152064, "tie_word_embeddings": False}  # fmt: skip
CASES: list[tuple[str, dict[str, Any], int, str, dict[str, Any], int]] = [
    ("miniature, one rank", MINIATURE, 1, "float32", {}, 16384),
    ("miniature, TP 2 with sequence parallel", MINIATURE, 2, "float32", {"tensor": 2, "sequence": True}, 16384),
    ("miniature, PP 2", MINIATURE, 2, "float32", {"pipeline": 2}, 16384),
    ("miniature, full recomputation", MINIATURE, 1, "float32", {"recompute": "full"}, 32768),
    ("miniature with experts, one rank", EXPERTS, 1, "float32", {}, 8192),
    ("miniature with experts, TP 2", EXPERTS, 2, "float32", {"tensor": 2, "sequence": True}, 8192),
    ("miniature with experts, full recomputation", EXPERTS, 1, "float32", {"recompute": "full"}, 8192),
    ("0.5B, one rank, bfloat16", HALF_BILLION, 1, "bfloat16", {}, 512),
]


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}")


def measure(folder: Path, dtype: str, layout: ParallelConfig, num_tokens: int, give_back: bool) -> None:
    """Of one rank; rank 0 writes the ranks' rows to FOLDER/found.json."""
    torch.set_num_threads(1)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of the imports, is forgotten
    before = resident("VmRSS")
    model = ModelConfig(path=folder, init="random", dtype=dtype, spec="torch")  # type: ignore[arg-type]
    with joined_ranks(layout) as parallel:
        if give_back:
            _give_back_freed_memory()
        policy = build_policy(model, OptimizerConfig(), layout, parallel, num_steps=2, updates_per_step=1)

        def loss(logprobs: torch.Tensor, _: torch.Tensor, batch: PackedBatch) -> tuple[torch.Tensor, dict[str, float]]:
            return -logprobs.sum(), {}

        count = (parallel.pipeline + 1) * parallel.data if parallel.pipeline > 1 else parallel.data
        sequences = [TokenSequence([1] * (LENGTH + 1), 1, {})] * (count * num_tokens // LENGTH)
        for _ in range(2):
            policy.forward_backward(policy.micro_batches(sequences, num_tokens, []), loss)
            policy.step()
        taken = resident("VmHWM") - before
        shape, stage = policy.part.shape, parallel.pipeline_rank
        parameters = stage_parameters(shape, layout.tensor, layout.pipeline, stage)
        held = states(parameters, dtype, parallel.data, layout.distributed_optimizer, parallel.data_rank)
        kept = activations(shape, layout, dtype, num_tokens, num_tokens, stage, 1.0, count, fused_experts=False)
        rows = parallel.gather((held.total, kept.peak, taken))
        if parallel.rank == 0:
            (folder / "found.json").write_text(json.dumps(rows))


def _give_back_freed_memory() -> None:
    """Undoes `policy.platform._keep_freed_memory`: blocks of 64 KiB or more go when they are freed.

    Kept blocks leave holes, as no allocator of a GPU does, and a resident size would count them.
    """
    mallopt = ctypes.CDLL(None).mallopt
    trim_threshold, mmap_threshold = -1, -3  # names of malloc.h
    mallopt(mmap_threshold, 2**16)
    mallopt(trim_threshold, 2**16)


def launch(
    shape: dict[str, Any], ranks: int, dtype: str, layout: dict[str, Any], tokens: int, give_back: bool = True
) -> list[tuple[int, int, int]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(shape))
        job = json.dumps({"dtype": dtype, "layout": layout, "tokens": tokens, "give_back": give_back})
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        done = subprocess.run(
            [*command, __file__, "--rank", name, job], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{command} failed:\n{done.stderr[-3000:]}")
        return [tuple(row) for row in json.loads((folder / "found.json").read_text())]


def search_seconds() -> list[tuple[int, int, float]]:
    """(GPUs, layouts that were looked at, seconds) for a model of 72B."""
    from megatron_urpo.config.load import restore_config
    from megatron_urpo.planning import make_plan
    from megatron_urpo.planning.search import layouts
    from megatron_urpo.policy.hf.shape import parse_shape

    found = []
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "config.json").write_text(json.dumps(SEARCHED | {"max_position_embeddings": 32768}))
        config = restore_config({"run_dir": name, "model": {"path": name}, "data": {"train": []}})
        for gpus in (8, 64, 512):
            start = time.perf_counter()
            make_plan(config, "h100", gpus)
            seconds = time.perf_counter() - start
            found.append((gpus, len(list(layouts(parse_shape(SEARCHED), gpus, 8, config.parallel))), seconds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--keep", action="store_true", help="keep freed memory, as a run on a CPU does, with its holes")
    parser.add_argument("--rank", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        folder, job = Path(arguments.rank[0]), json.loads(arguments.rank[1])
        measure(folder, job["dtype"], ParallelConfig(**job["layout"]), job["tokens"], job["give_back"])
        return
    print("| case | tokens | rank | states, MiB | activations, MiB | predicted, MiB | measured, MiB | off by |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, shape, ranks, dtype, layout, tokens in CASES:
        if arguments.only not in name:
            continue
        for rank, (held, kept, taken) in enumerate(launch(shape, ranks, dtype, layout, tokens, not arguments.keep)):
            cells = [f"{value / 2**20:,.0f}" for value in (held, kept, held + kept, taken)]
            off = (held + kept) / taken - 1
            print(f"| {name} | {tokens:,} | {rank} | {' | '.join(cells)} | {off:+.1%} |", flush=True)
    for gpus, count, seconds in search_seconds():
        print(f"search of a 72B model over {gpus} GPUs: {count} layouts in {seconds:.3f} s")


if __name__ == "__main__":
    main()
