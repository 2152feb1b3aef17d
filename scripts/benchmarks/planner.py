"""Plans a long-tailed batch: micro-batches, fill, padding, imbalance and time, beside the bound and simpler rules.

The batch is like that of the planner's tests: prompts of 50 to 512 tokens, responses of mean 900 cut at 4,096. `bound`
is the least number of micro-batches by tokens, rounded up to the ranks. `first fit` is first-fit decreasing by tokens,
and `by tokens` this planner told that a token costs the same everywhere; both are dealt to the ranks by the same rule,
and judged by the same costs. Imbalance is what the slowest takes longer than the mean: of the ranks' whole work, and of
the worst row (micro-batch k of every rank).
"""

import argparse
import random
import time
from collections.abc import Callable
from functools import partial
from statistics import median

from megatron_urpo.algorithm.alignment import round_up
from megatron_urpo.algorithm.cost import sequence_flops
from megatron_urpo.algorithm.microbatches import plan_microbatches

Plan = list[list[list[int]]]
SHAPES = {
    "0.5B": {
        "num_layers": 24, "hidden_size": 896, "ffn_hidden_size": 4864, "num_heads": 14, "num_query_groups": 2,
        "head_dim": 64, "vocab_size": 151936,
    },
    "7B": {
        "num_layers": 28, "hidden_size": 3584, "ffn_hidden_size": 18944, "num_heads": 28, "num_query_groups": 4,
        "head_dim": 128, "vocab_size": 152064,
    },
}  # fmt: skip


def long_tailed(count: int, seed: int) -> list[tuple[int, int]]:
    """(tokens, predicted tokens) of each sample."""
    source = random.Random(seed)
    pairs = [(source.randint(50, 512), min(4096, 1 + int(source.expovariate(1 / 900)))) for _ in range(count)]
    return [(prompt + response, response) for prompt, response in pairs]


def first_fit(lengths: list[int], costs: list[int], *, max_tokens: int, num_ranks: int) -> Plan:
    """First-fit decreasing by tokens; costliest first, a row at a time, to the rank with the least so far."""
    bins: list[list[int]] = []
    rooms: list[int] = []
    for sample in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = next((k for k, room in enumerate(rooms) if room >= lengths[sample]), len(bins))
        if place == len(bins):
            bins.append([])
            rooms.append(max_tokens)
        bins[place].append(sample)
        rooms[place] -= lengths[sample]
    bins += [[] for _ in range(-len(bins) % num_ranks)]
    bins.sort(key=lambda samples: -sum(costs[sample] for sample in samples))
    plan: Plan = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for start in range(0, len(bins), num_ranks):
        for rank, samples in zip(sorted(range(num_ranks), key=loads.__getitem__), bins[start:], strict=False):
            plan[rank].append(samples)
            loads[rank] += sum(costs[sample] for sample in samples)
    return plan


def by_tokens(lengths: list[int], costs: list[int], *, max_tokens: int, num_ranks: int) -> Plan:
    return plan_microbatches(lengths, lengths, max_tokens=max_tokens, num_ranks=num_ranks)


def imbalance(loads: list[int]) -> float:
    return 100 * (max(loads) * len(loads) / sum(loads) - 1)


def report(name: str, planner: Callable[..., Plan], lengths: list[int], costs: list[int], runs: int, align: int) -> str:
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        plan = planner(lengths, costs)
        seconds.append(1000 * (time.perf_counter() - start))
    tokens = [[sum(lengths[s] for s in samples) for samples in rank] for rank in plan]
    work = [[sum(costs[s] for s in samples) for samples in rank] for rank in plan]
    computed = sum(max(align, round_up(load, align)) for rank in tokens for load in rank)
    worst_row = max(imbalance(list(row)) for row in zip(*work, strict=True))
    return (
        f"| {name} | {sum(map(len, plan))} | {100 * (1 - sum(lengths) / computed):.2f} |"
        f" {imbalance([sum(rank) for rank in work]):.2f} | {imbalance([sum(rank) for rank in tokens]):.2f} |"
        f" {worst_row:.1f} | {median(seconds):.1f} ({min(seconds):.1f} - {max(seconds):.1f}) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--align", type=int, default=16, help="tokens of a micro-batch are padded to a multiple")
    parser.add_argument("--max-tokens", type=int, nargs="+", default=[4608, 16384])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    samples = long_tailed(arguments.samples, arguments.seed)
    lengths = [length for length, _ in samples]
    print(f"{len(lengths)} samples, {sum(lengths)} tokens, longest {max(lengths)}; {arguments.ranks} ranks")
    print(f"alignment {arguments.align}, {arguments.runs} runs")
    for max_tokens in arguments.max_tokens:
        cap = max_tokens // arguments.align * arguments.align
        bound = round_up(-(-sum(lengths) // cap), arguments.ranks)
        for shape, numbers in SHAPES.items():
            costs = [sequence_flops(length, targets, **numbers) for length, targets in samples]
            fill = 100 * sum(lengths) / (bound * cap)
            print(f"\n{shape}, at most {max_tokens} tokens: bound {bound}, which it would fill to {fill:.1f}%")
            print("| rule | micro-batches | padding % | ranks % | ranks, tokens % | worst row % | ms (min - max) |")
            print("|---|---:|---:|---:|---:|---:|---:|")
            for name, rule in (("cost", plan_microbatches), ("by tokens", by_tokens), ("first fit", first_fit)):
                planner = partial(rule, max_tokens=cap, num_ranks=arguments.ranks)
                print(report(name, planner, lengths, costs, arguments.runs, arguments.align))


if __name__ == "__main__":
    main()
