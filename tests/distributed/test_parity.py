"""Megatron's model is transformers' model: log-probabilities at every layout, before and after training steps.

Also here, because it needs the same launches: the places where the platform shims are used are the audited ones.
"""

from typing import Any

import pytest

from megatron_urpo.policy.platform import CALL_SITES
from tests.distributed.launch import run_worlds

# name: (ranks, arguments of the worker)
LAYOUTS = {
    "one rank": (1, (1, 1, False, "none")),
    "tensor 2": (2, (2, 1, False, "none")),
    "tensor 2, sequence parallel, recomputed": (2, (2, 1, True, "full")),
    "pipeline 2, recomputed": (2, (1, 2, False, "selective")),
    "tensor 2 x pipeline 2, sequence parallel": (4, (2, 2, True, "none")),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("parity")
    worlds = [(ranks, folder / str(index), arguments) for index, (ranks, arguments) in enumerate(LAYOUTS.values())]
    return dict(zip(LAYOUTS, run_worlds("worker_parity", worlds), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_equal_transformers(results: dict[str, Any], layout: str) -> None:
    """Logits reach about 10 in size: float32 sums over 128 channels and two layers stay well below 1e-4."""
    for model, found in results[layout]["models"].items():
        assert found["logits"] < 2e-5, model


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logprobs_equal_transformers(results: dict[str, Any], layout: str) -> None:
    """The bound asked for is 1e-4; float32 sums over 120 positions and 127 words stay well below 1e-5."""
    for model, found in results[layout]["models"].items():
        assert found["before"] < 1e-5, model


@pytest.mark.parametrize("layout", LAYOUTS)
def test_export_after_steps_loads_in_transformers(results: dict[str, Any], layout: str) -> None:
    for model, found in results[layout]["models"].items():
        assert found["after"] < 1e-5, model


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_norm_does_not_depend_on_the_layout(results: dict[str, Any], layout: str) -> None:
    for model, found in results[layout]["models"].items():
        want = results["one rank"]["models"][model]["grad_norm"]
        assert abs(found["grad_norm"] - want) < 1e-5 * want, model


def test_shims_are_used_where_they_were_audited(results: dict[str, Any]) -> None:
    seen: dict[str, set[str]] = {}
    for result in results.values():
        for audit in result["audit"]:
            for shim, places in audit.items():
                seen.setdefault(shim, set()).update(places)
    assert seen == CALL_SITES
