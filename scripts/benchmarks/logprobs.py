"""Log-probabilities of a micro-batch, forward and backward: in chunks against whole logits.

Each run is a process of its own, so that its peak memory is its own; the two variants take turns. Memory is the peak
resident size above that of the process before the computation.
"""

import argparse
import resource
import subprocess
import sys
import time
from statistics import median

import torch

from megatron_urpo.policy.logprobs import token_logprobs

VARIANTS = ("chunked", "whole")


def measure(variant: str, tokens: int, words: int, hidden_size: int) -> None:
    """Runs one variant once and prints seconds and MiB."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, hidden_size, requires_grad=True)
    weight = (torch.randn(words, hidden_size) * hidden_size**-0.5).requires_grad_()
    weight.grad = torch.zeros_like(weight)  # there in training, whatever the variant
    targets = torch.randint(0, words, (tokens,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if variant == "chunked":
        logprobs, entropy = token_logprobs(hidden, weight, targets, words)
    else:
        everywhere = torch.log_softmax(hidden @ weight.t(), -1)
        logprobs = everywhere.gather(1, targets[:, None])[:, 0]
        with torch.no_grad():
            entropy = -(everywhere.exp() * everywhere).sum(-1)
    logprobs.mean().backward()
    seconds = time.perf_counter() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(seconds, peak, float(logprobs.detach().mean()), float(entropy.mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--words", type=int, default=151936)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        measure(arguments.variant, arguments.tokens, arguments.words, arguments.hidden)
        return
    shape = [f"--{name}={getattr(arguments, name)}" for name in ("tokens", "words", "hidden")]
    found: dict[str, list[list[float]]] = {variant: [] for variant in VARIANTS}
    for _ in range(arguments.runs):
        for variant in VARIANTS:
            command = [sys.executable, __file__, *shape, f"--variant={variant}"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[variant].append([float(value) for value in done.stdout.split()])
    print(f"{arguments.tokens} tokens, {arguments.words} words, hidden size {arguments.hidden}, {arguments.runs} runs")
    print("| variant | seconds, median (min - max) | peak MiB, median | mean log-probability | mean entropy |")
    print("|---|---:|---:|---:|---:|")
    for variant, rows in found.items():
        seconds, peaks, logprobs, entropies = zip(*rows, strict=True)
        spread = f"{median(seconds):.2f} ({min(seconds):.2f} - {max(seconds):.2f})"
        print(f"| {variant} | {spread} | {median(peaks):.0f} | {logprobs[0]:.5f} | {entropies[0]:.5f} |")
    pairs = list(zip(found["chunked"], found["whole"], strict=True))
    print(f"time, chunked / whole, pair by pair: {median(a[0] / b[0] for a, b in pairs):.2f}")
    print(f"peak memory, whole / chunked, pair by pair: {median(b[1] / a[1] for a, b in pairs):.1f}")


if __name__ == "__main__":
    main()
