"""The gate between engine and trainer."""

import pytest

from megatron_urpo.config import Config
from megatron_urpo.health import TrainingStopped
from megatron_urpo.loop.parity import check_mismatch, check_server
from tests.support.rollout import make_config

AGREES = {"mismatch/kl": 0.0099, "mismatch/max": 0.4}
DIFFERS = {"mismatch/kl": 0.0101, "mismatch/max": 0.4}
ENGINE = "sglang 0.5.21, float32, 1 tensor-parallel ranks"


def config(engine: str) -> Config:
    return make_config(rollout={"engine": engine}, mismatch={"max_kl": 0.01})


def test_below_the_limit_a_run_goes_on() -> None:
    check_mismatch(config("sglang"), AGREES, ENGINE)
    check_mismatch(config("sglang"), {}, ENGINE)  # a step without samples measures nothing
    check_server(config("sglang"), AGREES, "http://a:1")


def test_above_it_the_run_stops_and_shows_both_sides() -> None:
    with pytest.raises(TrainingStopped) as stopped:
        check_mismatch(config("sglang"), DIFFERS, ENGINE)
    message = str(stopped.value)
    for part in ("mismatch/kl 0.0101", "0.4 nats", "mismatch.max_kl 0.01", ENGINE, "megatron-core 0.16", "bfloat16"):
        assert part in message
    assert "Weights came by broadcast" in message
    with pytest.raises(TrainingStopped) as stopped:
        check_mismatch(config("embedded"), DIFFERS, "embedded")
    assert "Weights came" not in str(stopped.value)


def test_a_server_with_other_weights_is_named() -> None:
    with pytest.raises(TrainingStopped, match=r"^http://a:1 does not compute with the weights that it was sent"):
        check_server(config("sglang"), DIFFERS, "http://a:1")
