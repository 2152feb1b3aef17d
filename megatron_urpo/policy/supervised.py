"""One supervised step: weighted next-token loss over conversations, on the same packed pass as the policy update."""

from collections.abc import Sequence

from torch import Tensor

from megatron_urpo.policy.packing import PackedBatch, TokenSequence
from megatron_urpo.policy.policy import Policy


def supervised_step(policy: Policy, sequences: Sequence[TokenSequence], max_tokens: int) -> dict[str, float]:
    """Trains on `sequences`, whose `values["weights"]` weigh each target token. The same arguments on every rank.

    loss = sum of -weight * log-probability / sum of weights, over the whole batch.
    """
    total = sum(sum(sequence.values["weights"]) for sequence in sequences)
    batches = policy.micro_batches(sequences, max_tokens, ["weights"])

    def loss(logprobs_R: Tensor, _: Tensor, batch: PackedBatch) -> tuple[Tensor, dict[str, float]]:
        value = -(batch.values["weights"] * logprobs_R).sum() / total
        return value, {"loss": float(value.detach())}

    sums = policy.forward_backward(batches, loss)
    grad_norm = policy.step()
    return {
        "sft/loss": sum(part.get("loss", 0.0) for part in policy.parallel.gather(sums)),
        "sft/grad_norm": grad_norm,
        "sft/lr": policy.learning_rate,
        "tokens/train": float(sum(sequence.num_input_tokens for sequence in sequences)),
    }
