"""The policy: this rank's model part with its optimizer, and the two things one does with it: a pass, and a step.

A pass runs packed micro-batches through megatron-core's pipeline schedule and hands each micro-batch's response
log-probabilities to a loss. Losses return sums that are already divided by the global count, so gradients simply add up
over micro-batches and data-parallel ranks and do not depend on the layout.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region, gather_from_sequence_parallel_region
from torch import Tensor

from megatron_urpo.config.schema import ModelConfig, OptimizerConfig, ParallelConfig
from megatron_urpo.policy.export import export_weights
from megatron_urpo.policy.hf.folder import write_folder
from megatron_urpo.policy.logprobs import token_logprobs
from megatron_urpo.policy.model import ModelPart, build_model
from megatron_urpo.policy.optimizer import build_optimizer, build_scheduler, wrap_model
from megatron_urpo.policy.packing import PackedBatch
from megatron_urpo.policy.parallel import Parallel

Loss = Callable[[Tensor, Tensor, PackedBatch], tuple[Tensor, dict[str, float]]]
"""(logprobs [R], entropy [R], micro-batch) -> (the loss's share of this micro-batch, sums to be added up)."""


@dataclass
class Policy:
    part: ModelPart
    parallel: Parallel
    model: Any
    optimizer: Any
    scheduler: Any

    @property
    def alignment(self) -> int:
        """Sequence parallelism cuts a micro-batch's tokens evenly over the tensor-parallel ranks."""
        return self.parallel.tensor if self.part.config.sequence_parallel else 1

    def forward_backward(self, batches: Sequence[PackedBatch], loss: Loss) -> dict[str, float]:
        """Accumulates the gradients of `loss` over this rank's `batches`; returns this rank's sums.

        Call it with equally many batches on every data-parallel rank. The sums are empty on all ranks but one for each
        data-parallel rank, so that adding them up over all ranks counts each token once.
        """
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        sums: dict[str, float] = {}
        for part in self._run(batches, partial(self._loss_step, loss), forward_only=False):
            for name, value in part.items():
                sums[name] = sums.get(name, 0.0) + value
        return sums if self.parallel.tensor_rank == 0 else {}

    @torch.no_grad()
    def logprobs(self, batches: Sequence[PackedBatch]) -> list[Tensor]:
        """Log-probabilities [R] of each batch's targets; on the last pipeline stage, elsewhere an empty list."""
        return self._run(batches, self._logprob_step, forward_only=True)

    def step(self) -> float:
        """One optimizer update from the accumulated gradients. Returns their global norm before clipping.

        Where that norm is not finite nothing is updated: AdamW would carry the damage into every later step.
        """
        self.optimizer.prepare_grads()
        grad_norm = float(self.optimizer.get_grad_norm())
        if math.isfinite(grad_norm):
            self.optimizer.step()
        self.scheduler.step(increment=1)
        return grad_norm

    def skip_updates(self, count: int) -> None:
        """Advances the learning-rate schedule by `count` updates that do not happen."""
        if count:
            self.scheduler.step(increment=count)

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def export(self) -> Iterator[tuple[str, Tensor]]:
        """Hugging Face-named, unsharded weights; on rank 0. Collective: every rank must iterate to the end."""
        return export_weights(self.part, self.parallel)

    def write_model(self, target: Path, source: Path) -> None:
        """Writes a Hugging Face folder with config and tokenizer from `source`. Collective; rank 0 writes."""
        weights = self.export()
        if self.parallel.rank == 0:
            write_folder(target, source, weights)
        for _ in weights:
            pass

    def _run(self, batches: Sequence[PackedBatch], finish: Callable[..., Any], forward_only: bool) -> list[Any]:
        def forward_step(batches: Iterator[PackedBatch], model: Any) -> tuple[Tensor, Callable[..., Any]]:
            batch = next(batches)
            output = model(batch.tokens_1T, batch.positions_1T, None, packed_seq_params=batch.packed)
            return output, partial(finish, batch)

        results: list[Any] = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(batches),
            model=[self.model],
            num_microbatches=len(batches),
            seq_length=max(batch.tokens_1T.shape[1] for batch in batches),
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )
        return results

    def _response_logprobs(self, batch: PackedBatch, hidden_T1H: Tensor) -> tuple[Tensor, Tensor]:
        group = None
        if self.parallel.tensor > 1:
            group = parallel_state.get_tensor_model_parallel_group()
            # Each rank's gradient of the hidden states covers its rows of the vocabulary; backward adds them up.
            if self.part.config.sequence_parallel:
                hidden_T1H = gather_from_sequence_parallel_region(hidden_T1H)
            else:
                hidden_T1H = copy_to_tensor_model_parallel_region(hidden_T1H)
        module = self.part.module
        hidden_RH = hidden_T1H[:, 0][batch.predicting_R]
        return token_logprobs(hidden_RH, module.output_weight, batch.targets_R, self.part.shape.vocab_size, group)

    def _loss_step(self, loss: Loss, batch: PackedBatch, hidden_T1H: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
        value, sums = loss(*self._response_logprobs(batch, hidden_T1H), batch)
        return value, torch.zeros((), dtype=torch.int), sums

    def _logprob_step(self, batch: PackedBatch, hidden_T1H: Tensor, non_loss_data: bool = True) -> Tensor:
        return self._response_logprobs(batch, hidden_T1H)[0]


def build_policy(
    model: ModelConfig,
    optimizer: OptimizerConfig,
    layout: ParallelConfig,
    parallel: Parallel,
    num_steps: int,
    updates_per_step: int,
) -> Policy:
    """The policy at step 0. Raises ConfigError where the model or the layout cannot be built."""
    part = build_model(model, layout, parallel)
    wrapped = wrap_model(part, layout.distributed_optimizer)
    wrapped.broadcast_params()
    optimizer_state = build_optimizer(wrapped, optimizer, layout.distributed_optimizer)
    scheduler = build_scheduler(optimizer_state, optimizer, num_steps, updates_per_step)
    return Policy(part, parallel, wrapped, optimizer_state, scheduler)
