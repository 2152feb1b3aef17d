"""What SGLang's CPU path imports from the package of compiled kernels, for want of a CPU wheel of it.

Serving calls one of these functions alone: `assign_req_to_token_pool_cpu`. The others belong to speculative decoding
and are only imported, so they exist and say what they are when called. `torch.ops.sgl_kernel.convert_weight_packed`
stays undefined on purpose: SGLang looks for it to decide whether the CPU kernels are there, and without it every layer
takes its plain torch forward.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch


def assign_req_to_token_pool_cpu(
    requests_B: torch.Tensor,
    pool_RT: torch.Tensor,
    starts_B: torch.Tensor,
    ends_B: torch.Tensor,
    slots_N: torch.Tensor,
    num_columns: int,
) -> None:
    """Notes where in the KV cache the new tokens of a batch of B requests went, in place.

    Row `requests_B[i]` of the table `pool_RT` takes the next `ends_B[i] - starts_B[i]` entries of `slots_N` (which
    holds those of all requests in a row, N in total) as its columns `starts_B[i]` to `ends_B[i]`.
    """
    taken = 0
    for request, start, end in zip(requests_B.tolist(), starts_B.tolist(), ends_B.tolist(), strict=True):
        pool_RT[request, start:end] = slots_N[taken : taken + end - start].to(pool_RT.dtype)
        taken += end - start


def _only_imported(name: str) -> Callable[..., NoReturn]:
    def raise_error(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name}: speculative decoding has no CPU kernels here; switch it off")

    return raise_error


assign_draft_cache_locs_contiguous_cpu = _only_imported("assign_draft_cache_locs_contiguous_cpu")
assign_extend_cache_locs_cpu = _only_imported("assign_extend_cache_locs_cpu")
build_tree_kernel_efficient_cpu = _only_imported("build_tree_kernel_efficient_cpu")
copy_all_layer_kv_cache_cpu = _only_imported("copy_all_layer_kv_cache_cpu")
fill_accept_out_cache_loc_cpu = _only_imported("fill_accept_out_cache_loc_cpu")
fill_bonus_tokens_cpu = _only_imported("fill_bonus_tokens_cpu")
rotate_input_ids_cpu = _only_imported("rotate_input_ids_cpu")
verify_tree_greedy_cpu = _only_imported("verify_tree_greedy_cpu")
