"""What unit tests share."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from megatron_urpo.policy.parallel import Parallel


@pytest.fixture(scope="module")
def parallel() -> Iterator["Parallel"]:
    """Process groups of this process alone. Imported where it is asked for: most unit tests need no megatron-core."""
    import torch

    from megatron_urpo.config.model import ParallelConfig
    from megatron_urpo.policy.parallel import joined_ranks

    torch.set_num_threads(1)
    with joined_ranks(ParallelConfig()) as joined:
        yield joined
