"""From logits to tokens: every completion draws from its own stream of uniforms, whoever shares its batch.

The stream of completion `index` of a request is Philox with the key (seed, index): token t always takes the t-th
uniform. A token is found by inverting the cumulative distribution, which is summed in float64, so that one uniform
decides one token and a zero probability is never drawn. Probabilities themselves are float32, as the logits are: their
rounding moves no token's chance by more than a ten-millionth of itself, and float64 costs four times as much.

Shapes: B rows of the batch, V vocabulary.
"""

import numpy as np
import torch

SEED_BITS = 64


def uniforms(seed: int, index: int, count: int) -> np.ndarray:
    """The first `count` uniforms in [0, 1) of stream (seed, index), float64."""
    return np.random.Generator(np.random.Philox(key=[seed, index])).random(count)


def choose_tokens(
    logits_BV: torch.Tensor, temperatures_B: torch.Tensor | None, uniforms_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and their natural log-probabilities (float64), both of shape B.

    Row b is sampled at `temperatures_B[b]` with `uniforms_B[b]`; temperature 0 takes the most likely token. The
    log-probability is that of the distribution after temperature; of a greedy row that at temperature 1.
    `temperatures_B` None: every row at temperature 1, which saves a division over the vocabulary.
    """
    logits_BV = logits_BV.float()
    if temperatures_B is not None:
        scale_B = torch.where(temperatures_B > 0, temperatures_B, 1.0)
        greedy_B = logits_BV.argmax(-1)
        logits_BV = logits_BV / scale_B[:, None].float()
    logprobs_BV = torch.log_softmax(logits_BV, -1)
    cdf_BV = logprobs_BV.exp().cumsum(-1, dtype=torch.float64)
    # The sum is 1 up to rounding; aiming below the last entry keeps the search inside the vocabulary.
    targets_B1 = (uniforms_B * cdf_BV[:, -1])[:, None]
    tokens_B1 = torch.searchsorted(cdf_BV, targets_B1, right=True).clamp_(max=cdf_BV.shape[-1] - 1)
    if temperatures_B is not None:
        tokens_B1 = torch.where(temperatures_B[:, None] > 0, tokens_B1, greedy_B[:, None])
    return tokens_B1[:, 0], logprobs_BV.gather(-1, tokens_B1)[:, 0].double()
