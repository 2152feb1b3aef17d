"""Token sequences of different lengths become one packed (THD) micro-batch.

Shapes: `_1T` all tokens of the micro-batch; `_R` response tokens, the ones whose log-probability is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


@dataclass(frozen=True)
class TokenSequence:
    """`token_ids[first_target:]` are the tokens to be predicted; `values[name]` has one number for each of them."""

    token_ids: Sequence[int]
    first_target: int
    values: dict[str, Sequence[float]] = field(default_factory=dict)

    @property
    def num_input_tokens(self) -> int:
        return len(self.token_ids) - 1  # the last token is predicted, never read

    @property
    def num_targets(self) -> int:
        return len(self.token_ids) - self.first_target


@dataclass
class PackedBatch:
    """One micro-batch. `values[name]` is [R]; the update adds `old_logprobs` to it on the last pipeline stage."""

    tokens_1T: Tensor
    positions_1T: Tensor
    packed: PackedSeqParams
    predicting_R: Tensor
    targets_R: Tensor
    values: dict[str, Tensor]
    num_padding: int


def pack(
    sequences: Sequence[TokenSequence], align: int, device: torch.device, names: Sequence[str] = ()
) -> PackedBatch:
    """Packs `sequences`; the total is padded to a multiple of `align` by one more sequence that predicts nothing.

    `names` are the values that are packed with the tokens. No sequences at all make a batch of padding: data-parallel
    ranks must run equally many micro-batches.
    """
    lengths = [sequence.num_input_tokens for sequence in sequences]
    num_padding = -sum(lengths) % align or (0 if lengths else align)
    tokens = [token for sequence in sequences for token in sequence.token_ids[:-1]] + [0] * num_padding
    if num_padding:
        lengths.append(num_padding)
    ends = torch.tensor([0, *lengths]).cumsum(0)
    positions = torch.cat([torch.arange(length) for length in lengths])
    predicting = [
        torch.arange(int(start) + sequence.first_target - 1, int(start) + sequence.num_input_tokens)
        for start, sequence in zip(ends[: len(sequences)], sequences, strict=True)
    ]
    targets = [token for sequence in sequences for token in sequence.token_ids[sequence.first_target :]]
    cumulative = ends.to(torch.int32).to(device)
    longest = max(lengths)
    return PackedBatch(
        tokens_1T=torch.tensor(tokens)[None].to(device),
        positions_1T=positions[None].to(device),
        packed=PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=cumulative,
            cu_seqlens_kv=cumulative,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
        ),
        predicting_R=torch.cat([torch.empty(0, dtype=torch.long), *predicting]).to(device),
        targets_R=torch.tensor(targets, dtype=torch.long).to(device),
        values={
            name: torch.tensor([x for s in sequences for x in s.values[name]], dtype=torch.float32).to(device)
            for name in names
        },
        num_padding=num_padding,
    )
