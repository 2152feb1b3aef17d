"""Bytes of a micro-batch: what a pass keeps for the way back, and what it needs for a moment.

Counted are the tensors that autograd keeps, one by one; `tests/unit/planning` counts them in a real pass. Elements of
the training dtype unless a width stands beside them.

`T` tokens of the micro-batch; `H` hidden size; `Q`, `K` this rank's query and key channels; `F` its feed-forward ones.
"""

from dataclasses import dataclass
from typing import Literal

from megatron_urpo.config.model import ParallelConfig
from megatron_urpo.planning.experts import expert_bytes, expert_working
from megatron_urpo.planning.states import DTYPE_BYTES
from megatron_urpo.policy.hf.shape import ModelShape
from megatron_urpo.policy.hf.table import padded_vocab_size

Recompute = Literal["none", "selective", "full"]
CHUNK_ELEMENTS = 2**24
"""Logits that exist at one time: `policy.logprobs.CHUNK_ELEMENTS`, whose module needs process groups."""


@dataclass(frozen=True)
class Activations:
    """`layers`: kept for each micro-batch that is under way. `outside`: at the ends of the model, likewise.

    `working`: for a moment, in the backward pass of a layer. `logprobs`: for a moment, on the last stage.
    """

    layers: int
    outside: int
    working: int
    logprobs: int
    in_flight: int

    @property
    def kept(self) -> int:
        return (self.layers + self.outside) * self.in_flight

    @property
    def peak(self) -> int:
        return self.kept + max(self.working, self.logprobs)


def activations(
    shape: ModelShape,
    layout: ParallelConfig,
    dtype: str,
    num_tokens: int,
    num_targets: int,
    stage: int,
    padding: float = 1.0,
    num_micro_batches: int = 2**20,
    fused_experts: bool = True,
) -> Activations:
    """Of a rank of pipeline stage `stage`.

    `padding`: padded over real tokens inside the attention of the `torch` layers, from 1 to 2; 1 with Transformer
    Engine, which attends without padding. `num_micro_batches`: of a pass; a stage never has more under way.
    `fused_experts`: their activation is one kernel, as on GPUs.
    """
    width = DTYPE_BYTES[dtype]
    num_layers = shape.num_layers // layout.pipeline
    last = stage == layout.pipeline - 1
    per_token = layer_bytes(shape, layout, dtype, layout.recompute, padding, fused_experts)
    whole = layer_bytes(shape, layout, dtype, "none", padding, fused_experts)
    hidden, wide = shape.hidden_size, shape.ffn_hidden_size // layout.tensor
    heads = shape.num_heads // layout.tensor * shape.head_dim
    # Gradients of a layer's widest part: gate and value, their product, and the residual stream.
    widest = expert_working(shape, layout.tensor, width) if shape.num_experts else 3 * wide * width
    working = (widest + 2 * hidden * width) * num_tokens
    if layout.recompute == "full":
        working += whole * num_tokens
    elif layout.recompute == "selective":
        working += int(2 * (heads + _keys(shape, layout.tensor)) * width * padding) * num_tokens
    outside = 16 * num_tokens  # token ids and positions
    if last:
        sharing = layout.tensor if layout.sequence else 1
        outside += (2 * hidden * width // sharing + 4) * num_tokens  # around the last norm
    return Activations(
        layers=per_token * num_layers * num_tokens,
        outside=outside,
        working=working,
        logprobs=logprob_bytes(shape, layout.tensor, dtype, num_targets) if last else 0,
        in_flight=min(layout.pipeline - stage, num_micro_batches),
    )


def layer_bytes(
    shape: ModelShape, layout: ParallelConfig, dtype: str, recompute: Recompute, padding: float, fused_experts: bool
) -> int:
    """Kept for each token by one layer."""
    width, tensor = DTYPE_BYTES[dtype], layout.tensor
    sharing = tensor if layout.sequence else 1
    stream = shape.hidden_size // sharing
    if recompute == "full":
        return stream * width
    heads, groups = shape.num_heads // tensor, shape.num_query_groups // tensor
    queries, keys = heads * shape.head_dim, groups * shape.head_dim
    wide = shape.ffn_hidden_size // tensor
    rows = queries + 2 * keys  # the one matrix that query, key and value come out of
    kept = 4 * stream  # both norms: what goes in and what comes out
    kept += queries + 4 * shape.head_dim  # what the output projection reads; cosine and sine, for query and key
    bytes_kept = kept * width + 2 * 4  # and the two norms' scales
    if shape.num_experts:
        bytes_kept += expert_bytes(shape, tensor, sharing, width, fused_experts)
    else:
        bytes_kept += 3 * wide * width  # gate and value, and their product
    if shape.qk_norm:
        # What both read: keys as a part of the one matrix, queries as a copy where their groups lie apart in it.
        copied = queries if heads > groups > 1 else 0
        bytes_kept += (rows + copied) * width + 4 * (heads + groups)
    if recompute == "selective":
        return bytes_kept + (queries + keys) * width + (0 if shape.qk_norm else rows * width)
    return bytes_kept + int(padding * ((rows + queries) * width + 4 * heads))


def _keys(shape: ModelShape, tensor: int) -> int:
    return shape.num_query_groups // tensor * shape.head_dim


def logprob_bytes(shape: ModelShape, tensor: int, dtype: str, num_targets: int) -> int:
    """Of `policy/logprobs.py` at its peak, in the backward pass."""
    width, rows = DTYPE_BYTES[dtype], padded_vocab_size(shape.vocab_size, tensor) // tensor
    tokens = num_targets * shape.hidden_size * width
    if num_targets * rows <= CHUNK_ELEMENTS:  # one chunk, whose exponentials are kept
        return 3 * tokens + num_targets * rows * (4 + (4 if width == 4 else 2)) + rows * shape.hidden_size * width
    chunk = min(CHUNK_ELEMENTS, num_targets * rows)
    gradient = rows * shape.hidden_size * (4 if width == 4 else 4 + 2 + 2)  # float32 sum, a chunk's part, the result
    return 3 * tokens + chunk * (4 + 4 + (0 if width == 4 else 2)) + gradient
