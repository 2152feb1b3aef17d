"""Saving a checkpoint: how long the loop stands still, written in the background and waited for, beside a plain write.

A random model on one rank, weights and optimizer state in float32, 16 bytes a parameter. In each round the three take
turns in this process:

    plain       the same number of bytes, write and fsync
    waited      `checkpoint.background: false`: the loop waits until the checkpoint is committed
    background  the loop waits for the copy, trains on, and waits again for the commit once all is written

and beside them the time of a training step alone and while a checkpoint is written. It also tells the time of a load
with its checksums.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from transformers import Qwen2Config

from megatron_urpo.checkpoints.saving import Saver
from megatron_urpo.checkpoints.state import RunState, load_checkpoint, newest_checkpoint
from megatron_urpo.config import Config
from megatron_urpo.config.data import DataConfig
from megatron_urpo.config.model import ModelConfig, OptimizerConfig, ParallelConfig
from megatron_urpo.config.schema import CheckpointConfig
from megatron_urpo.health import Health
from megatron_urpo.policy.packing import TokenSequence
from megatron_urpo.policy.parallel import joined_ranks
from megatron_urpo.policy.policy import Policy, build_policy
from megatron_urpo.policy.supervised import supervised_step

BLOCK = bytes(2**24)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--words", type=int, default=32000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=256, help="of a training step")
    parser.add_argument("--folder", type=Path, help="where to write (a temporary folder)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        shape = {"hidden_size": chosen.hidden, "intermediate_size": 4 * chosen.hidden, "vocab_size": chosen.words}
        heads = {"num_hidden_layers": chosen.layers, "num_attention_heads": 8, "num_key_value_heads": 8}
        Qwen2Config(**shape, **heads, architectures=["Qwen2ForCausalLM"], tie_word_embeddings=True).save_pretrained(
            folder
        )
        model = ModelConfig(path=folder, init="random", dtype="float32")
        with joined_ranks(ParallelConfig()) as parallel:
            policy = build_policy(model, OptimizerConfig(), ParallelConfig(), parallel, 1000, 1)
            measure(policy, model, folder, chosen.rounds, chosen.tokens)


def measure(policy: Policy, model: ModelConfig, folder: Path, rounds: int, tokens: int) -> None:
    parameters = sum(parameter.numel() for parameter in policy.part.module.parameters())
    found: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        found.setdefault(name, []).append(seconds)

    def step() -> float:
        start = time.perf_counter()
        supervised_step(policy, [TokenSequence(tuple(range(1, tokens)), 1, {"weights": [1.0] * (tokens - 2)})], tokens)
        return time.perf_counter() - start

    step()
    size = 0
    for round_ in range(-1, rounds):  # the first is not counted: memory and files are new to it
        waited = save_waited(policy, config_of(folder / "waited", model, background=False), round_ + 2)
        size = sum(path.stat().st_size for path in (folder / "waited").rglob("*") if path.is_file())
        alone = step()
        config = config_of(folder / "background", model, background=True)
        copy, commit, steps, until = save_in_background(policy, config, round_ + 2, step)
        plain = write_plain(folder / "plain", size)
        start = time.perf_counter()
        newest = newest_checkpoint(folder / "background")
        assert newest is not None
        load_checkpoint(newest, policy)
        loaded = time.perf_counter() - start
        if round_ < 0:
            continue
        for name, seconds in (
            ("plain write + fsync", plain), ("waited for", waited), ("background: stands still", copy + commit),
            ("  of which copy", copy), ("  of which commit", commit), ("background: until committed", until),
            ("training step alone", alone), ("training step while written", median(steps)), ("load", loaded),
        ):  # fmt: skip
            note(name, seconds)
        note("stands still / waited", (copy + commit) / waited)
        note("waited / plain", waited / plain)
    print(f"{parameters / 1e6:.0f} million parameters, {size / 1e9:.2f} GB, {rounds} rounds: median (lowest - highest)")
    for name, values in found.items():
        print(f"{name:30s} {median(values):8.3f} ({min(values):.3f} - {max(values):.3f})")
    print(json.dumps(found))


def save_waited(policy: Policy, config: Config, number: int) -> float:
    with Saver(config, policy, 0) as saver:
        start = time.perf_counter()
        saver.save(state(number))
        return time.perf_counter() - start


def save_in_background(
    policy: Policy, config: Config, number: int, step: Callable[[], float]
) -> tuple[float, float, list[float], float]:
    """Seconds of the copy and of the commit, of the steps in between, and from the begin to the commit."""
    with Saver(config, policy, 0) as saver:
        start = time.perf_counter()
        saver.save(state(number))
        copy, steps, commit = time.perf_counter() - start, [], 0.0
        target = config.run_dir / "checkpoints" / f"step_{number:06d}"
        while not target.exists():
            steps.append(step())
            begin = time.perf_counter()
            saver.settle()
            commit += time.perf_counter() - begin
        return copy, commit, steps, time.perf_counter() - start


def write_plain(path: Path, num_bytes: int) -> float:
    start = time.perf_counter()
    with path.open("wb") as file:
        for offset in range(0, num_bytes, len(BLOCK)):
            file.write(BLOCK[: num_bytes - offset])
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def config_of(run_dir: Path, model: ModelConfig, background: bool) -> Config:
    shutil.rmtree(run_dir, ignore_errors=True)
    (run_dir / "checkpoints").mkdir(parents=True)
    checkpoint = CheckpointConfig(background=background, keep_last=1)
    return Config(run_dir=run_dir, model=model, data=DataConfig(train=(run_dir,)), checkpoint=checkpoint)


def state(number: int) -> RunState:
    return RunState(number, Health(), {})


if __name__ == "__main__":
    main()
