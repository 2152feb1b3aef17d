"""What a training step reports of itself, gathered from all ranks: the same on every one of them."""

from collections.abc import Mapping, Sequence

import torch

from megatron_urpo.policy.packing import PackedBatch
from megatron_urpo.policy.parallel import Parallel
from megatron_urpo.types import TASKS, Sample


def policy_metrics(parallel: Parallel, sums: Mapping[str, float], num_updates: int) -> dict[str, float]:
    """Means over response tokens of all updates; those of the ratio over tokens that count (weight above 0)."""
    total: dict[str, float] = {}
    for part in parallel.gather(dict(sums)):
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    metrics = {
        "policy/loss": total["loss"] / num_updates,
        "policy/entropy": total["entropy"] / total["response_tokens"],
    }
    if "kl_reference" in total:
        metrics["policy/kl_reference"] = total["kl_reference"] / total["response_tokens"]
    if total["tokens"]:
        metrics |= {
            "policy/clip_fraction": total["clipped_tokens"] / total["tokens"],
            "policy/ratio_mean": total["ratio_sum"] / total["tokens"],
            "policy/kl_old": total["kl_k3_sum"] / total["tokens"],
        }
    return metrics


def mismatch_metrics(parallel: Parallel, batches: Sequence[PackedBatch], name: str) -> dict[str, float]:
    """How far the engine's log-probabilities are from the trainer's, which stand in the batches' value `name`.

    `mismatch/kl`: mean k3 estimate of KL(engine || trainer) at the sampled tokens; `mismatch/max`: the largest
    difference; both for each task too. `mismatch/weight_mean`, `mismatch/masked_fraction`: of the importance weights
    that the loss used, 1 and 0 without a correction.
    """
    parts: dict[str, list[float]] = {}
    for batch in batches:
        if name in batch.values and batch.targets_R.numel() and parallel.tensor_rank == 0:
            for suffix, numbers in _gaps(batch, name).items():
                count, kl, largest, *weights = numbers
                known = parts.setdefault(suffix, [0.0] * 5)
                known[0] += count
                known[1] += kl
                known[2] = max(known[2], largest)
                known[3:] = [a + b for a, b in zip(known[3:], weights, strict=True)]
    metrics: dict[str, float] = {}
    everywhere = parallel.gather(parts)
    for suffix in ("", *(f"/{task}" for task in TASKS)):
        found = [part[suffix] for part in everywhere if suffix in part]
        if found:
            tokens = sum(part[0] for part in found)
            metrics[f"mismatch/kl{suffix}"] = sum(part[1] for part in found) / tokens
            metrics[f"mismatch/max{suffix}"] = max(part[2] for part in found)
        if found and not suffix:
            metrics["mismatch/weight_mean"] = sum(part[3] for part in found) / tokens
            metrics["mismatch/masked_fraction"] = sum(part[4] for part in found) / tokens
    return metrics


def _gaps(batch: PackedBatch, trainer: str) -> dict[str, tuple[float, ...]]:
    """By "" and by "/task": tokens, summed k3, largest difference, summed weights, tokens of weight 0."""
    values = batch.values
    gap_R = (values[trainer] - values["rollout_logprobs"]).double()
    weights_R = values.get("weights", torch.ones_like(gap_R))
    chosen = {"": torch.ones_like(gap_R, dtype=torch.bool)}
    chosen |= {f"/{task}": values["task"] == index for index, task in enumerate(TASKS)}
    result: dict[str, tuple[float, ...]] = {}
    for name, here_R in chosen.items():
        gap_S, weights_S = gap_R[here_R], weights_R[here_R]
        if gap_S.numel():
            result[name] = (
                float(gap_S.numel()),
                float((gap_S.exp() - 1 - gap_S).sum()),
                float(gap_S.abs().max()),
                float(weights_S.sum()),
                float((weights_S == 0).sum()),
            )
    return result


def task_shares(samples: Sequence[Sample]) -> dict[str, float]:
    """How much of the step each task is: `tokens/share/<task>` of the completion tokens, and `loss/share/<task>`.

    The latter is the share of the sum of |advantage| over completion tokens: at ratio 1 a token pulls on its
    log-probability by exactly its advantage, so this is how hard a task pulls before the model has its say.
    """
    tokens = dict.fromkeys(TASKS, 0)
    pull = dict.fromkeys(TASKS, 0.0)
    for sample in samples:
        tokens[sample.task] += len(sample.completion_ids)
        pull[sample.task] += abs(sample.advantage) * len(sample.completion_ids)
    present = [task for task in TASKS if tokens[task]]
    shares = {f"tokens/share/{task}": tokens[task] / sum(tokens.values()) for task in present}
    if sum(pull.values()) > 0:
        shares |= {f"loss/share/{task}": pull[task] / sum(pull.values()) for task in present}
    return shares


def token_metrics(parallel: Parallel, batches: Sequence[PackedBatch], num_tokens: int) -> dict[str, float]:
    """`batches` of this rank; `num_tokens` of the whole step that are not padding."""
    padding = sum(batch.num_padding for batch in batches)
    computed = sum(batch.tokens_1T.numel() for batch in batches)
    everywhere = parallel.gather((padding, computed))
    return {
        "tokens/train": float(num_tokens),
        "tokens/padding_fraction": sum(p for p, _ in everywhere) / sum(c for _, c in everywhere),
        "batch/micro_batches": float(len(batches) * len(everywhere) // (parallel.tensor * parallel.pipeline)),
    }
