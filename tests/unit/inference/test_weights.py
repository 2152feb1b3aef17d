from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from megatron_urpo.inference.embedded import EmbeddedEngine
from tests.support.models import make_model


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[EmbeddedEngine, PreTrainedModel]:
    model = make_model(tmp_path, "qwen2", tied=request.param)
    engine = EmbeddedEngine(
        tmp_path, stop_token_ids=[3], dtype=torch.float32, device=torch.device("cpu"), max_batch_tokens=100
    )
    return engine, model


def weights(engine: EmbeddedEngine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine._model.state_dict().items()}


def test_all_weights_arrive(pair: tuple[EmbeddedEngine, PreTrainedModel]) -> None:
    engine, model = pair
    engine.update_weights(model.state_dict().items(), 5)
    assert engine.version == 5
    for name, tensor in weights(engine).items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_a_tied_head_may_be_absent_and_an_untied_one_may_not(pair: tuple[EmbeddedEngine, PreTrainedModel]) -> None:
    engine, model = pair
    given = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    if model.config.tie_word_embeddings:
        engine.update_weights(given.items(), 1)
        assert torch.equal(weights(engine)["lm_head.weight"], given["model.embed_tokens.weight"])
    else:
        with pytest.raises(ValueError, match=r"lm_head.weight did not come"):
            engine.update_weights(given.items(), 1)


def test_a_stream_may_reuse_its_memory(pair: tuple[EmbeddedEngine, PreTrainedModel]) -> None:
    engine, model = pair

    def stream():  # type: ignore[no-untyped-def]
        for name, tensor in model.state_dict().items():
            buffer = tensor.clone()
            yield name, buffer
            buffer.fill_(float("nan"))

    engine.update_weights(stream(), 1)
    assert all(torch.isfinite(tensor).all() for tensor in weights(engine).values())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), "model.norm.weight did not come"),
        (lambda w: w.update({"extra": torch.zeros(1)}), "extra is unknown to Qwen2ForCausalLM"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(2)}), r"shape \(2,\), the model expects \(64,\)"),
    ],
)
def test_all_or_nothing(pair: tuple[EmbeddedEngine, PreTrainedModel], damage: object, message: str) -> None:
    engine, model = pair
    engine.update_weights(model.state_dict().items(), 5)
    before = weights(engine)
    given = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    damage(given)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        engine.update_weights(given.items(), 6)
    assert engine.version == 5
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(engine).items())


def test_a_stream_that_breaks_off_changes_nothing(pair: tuple[EmbeddedEngine, PreTrainedModel]) -> None:
    engine, model = pair
    engine.update_weights(model.state_dict().items(), 5)
    before = weights(engine)

    def stream():  # type: ignore[no-untyped-def]
        yield "model.norm.weight", torch.zeros(64)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        engine.update_weights(stream(), 6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(engine).items())


def test_doubles_and_torn_ties_are_refused(pair: tuple[EmbeddedEngine, PreTrainedModel]) -> None:
    engine, model = pair
    items = list(model.state_dict().items())
    with pytest.raises(ValueError, match="came twice"):
        engine.update_weights([*items, items[1]], 1)
    if model.config.tie_word_embeddings:
        torn = {**dict(items), "lm_head.weight": torch.zeros_like(dict(items)["lm_head.weight"])}
        with pytest.raises(ValueError, match="tied in this model"):
            engine.update_weights(torn.items(), 1)
