"""The engine against transformers, and against itself in other circumstances."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from megatron_urpo.inference.batching import Row
from megatron_urpo.inference.decode import decode_batch
from megatron_urpo.inference.embedded import EmbeddedEngine
from megatron_urpo.protocols import Abandoned
from megatron_urpo.types import Completion, GenerationRequest, VersionSpan
from tests.support.models import FAMILIES, make_model

STOP = 3
Answers = list[tuple[Completion, ...]]


def make_engine(folder: Path, model: PreTrainedModel, **settings: int) -> EmbeddedEngine:
    engine = EmbeddedEngine(
        folder,
        stop_token_ids=[STOP],
        dtype=torch.float32,
        device=torch.device("cpu"),
        max_batch_tokens=settings.get("max_batch_tokens", 4096),
    )
    # As a checkpoint names them: transformers fuses experts in memory.
    engine.update_weights(load_file(folder / "model.safetensors").items(), version=4)
    return engine


@pytest.fixture(params=sorted(FAMILIES))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[EmbeddedEngine, PreTrainedModel]:
    model = make_model(tmp_path, request.param).eval()
    return make_engine(tmp_path, model), model


@pytest.fixture
def qwen(tmp_path: Path) -> tuple[EmbeddedEngine, PreTrainedModel]:
    model = make_model(tmp_path, "qwen2", tied=True).eval()
    return make_engine(tmp_path, model), model


def requests(num: int = 6, temperature: float = 1.0, max_new: int = 12) -> list[GenerationRequest]:
    rng = random.Random(0)
    return [
        GenerationRequest(
            prompt_ids=tuple(rng.randrange(5, 127) for _ in range(rng.randint(3, 30))),
            num_completions=rng.randint(1, 4),
            max_new_tokens=max_new - i % 3,
            temperature=temperature,
            seed=100 + i,
            order=(1, i),
        )
        for i in range(num)
    ]


def ask(engine: EmbeddedEngine, asked: Sequence[GenerationRequest]) -> Answers:
    async def all_of_them() -> Answers:
        return list(await asyncio.gather(*(engine.generate(request) for request in asked)))

    return asyncio.run(all_of_them())


def test_greedy_equals_transformers_generate(pair: tuple[EmbeddedEngine, PreTrainedModel]) -> None:
    engine, model = pair
    asked = requests(temperature=0.0)
    for request, completions in zip(asked, ask(engine, asked), strict=True):
        output = model.generate(
            torch.tensor([request.prompt_ids]),
            attention_mask=torch.ones(1, len(request.prompt_ids), dtype=torch.long),
            max_new_tokens=request.max_new_tokens,
            do_sample=False,
            eos_token_id=STOP,
            pad_token_id=0,
        )
        expected = tuple(output[0, len(request.prompt_ids) :].tolist())
        assert [completion.token_ids for completion in completions] == [expected] * request.num_completions


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_a_full_forward(pair: tuple[EmbeddedEngine, PreTrainedModel], temperature: float) -> None:
    engine, model = pair
    asked = requests(temperature=temperature)
    for request, completions in zip(asked, ask(engine, asked), strict=True):
        for completion in completions:
            ids = torch.tensor([request.prompt_ids + completion.token_ids])
            with torch.no_grad():
                logits = model(ids).logits[0, len(request.prompt_ids) - 1 : -1].double() / temperature
            expected = logits.log_softmax(-1).gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            assert torch.allclose(torch.tensor(completion.logprobs, dtype=torch.float64), expected, atol=1e-5, rtol=0)


def test_stop_reasons_lengths_and_spans(qwen: tuple[EmbeddedEngine, PreTrainedModel]) -> None:
    engine, _ = qwen
    asked = [GenerationRequest((9, 10), 64, 20, 1.5, 1, (0,)), GenerationRequest((9, 10), 4, 1, 1.0, 2, (1,))]
    many, short = ask(engine, asked)
    assert {completion.finish_reason for completion in many} == {"stop", "length"}
    for completion in many:
        length = len(completion.token_ids)
        assert completion.spans == (VersionSpan(4, 0, length),)
        assert len(completion.logprobs) == length
        assert STOP not in completion.token_ids[:-1]
        assert (completion.token_ids[-1] == STOP) == (completion.finish_reason == "stop")
        assert completion.finish_reason == "stop" or length == 20
    assert [len(completion.token_ids) for completion in short] == [1] * 4
    # The same first tokens are all different streams, yet not all different tokens: indices draw their own numbers.
    assert len({completion.token_ids for completion in many}) > 60


def test_arrival_time_changes_nothing(qwen: tuple[EmbeddedEngine, PreTrainedModel]) -> None:
    engine, _ = qwen
    asked = requests(12)
    expected = ask(engine, asked)
    for seed in range(3):
        places = random.Random(seed).sample(range(len(asked)), len(asked))

        async def staggered(places: list[int] = places) -> Answers:
            async def one(turns: int, request: GenerationRequest) -> tuple[Completion, ...]:
                for _ in range(turns):  # up to the patience of the driver between two arrivals
                    await asyncio.sleep(0)
                return await engine.generate(request)

            tasks = [asyncio.create_task(one(5 * turn, asked[place])) for turn, place in enumerate(places)]
            return [await task for task in tasks]

        answers = asyncio.run(staggered())
        assert [answers[places.index(i)] for i in range(len(asked))] == expected


def test_followers_compete_with_the_waiting_by_order(tmp_path: Path) -> None:
    """A chain play -> judge under a small budget is repeated bit for bit, whatever else the loop does meanwhile."""
    model = make_model(tmp_path, "qwen2").eval()
    engine = make_engine(tmp_path, model, max_batch_tokens=150)

    async def chain(request: GenerationRequest, noise: random.Random | None) -> list[tuple[Completion, ...]]:
        played = await engine.generate(request)
        follow = GenerationRequest(
            request.prompt_ids + played[0].token_ids[:5], 1, 6, 0.0, request.seed + 1000, (0, request.order[1])
        )
        judged = await engine.generate(follow)
        if noise is not None:
            await asyncio.sleep(noise.random() / 100)  # verification in another process
        return [played, judged]

    async def run(noise: random.Random | None) -> list[list[tuple[Completion, ...]]]:
        return list(await asyncio.gather(*(chain(request, noise) for request in requests(8))))

    expected = asyncio.run(run(None))
    for seed in range(2):
        assert asyncio.run(run(random.Random(seed))) == expected


def test_company_does_not_change_a_completion(qwen: tuple[EmbeddedEngine, PreTrainedModel]) -> None:
    """Not bit for bit, since matrix products round by their shape; but the same tokens from the same stream."""
    engine, _ = qwen
    asked = requests(8)
    together = ask(engine, asked)
    for request, expected in zip(asked, together, strict=True):
        (alone,) = ask(engine, [request])
        assert [c.token_ids for c in alone] == [c.token_ids for c in expected]
        for mine, theirs in zip(alone, expected, strict=True):
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


def test_long_prompts_are_read_a_few_at_a_time(qwen: tuple[EmbeddedEngine, PreTrainedModel]) -> None:
    _, model = qwen
    rows = [Row(request, i) for request in requests(5) for i in range(request.num_completions)]
    at_once = decode_batch(model, rows, [STOP])
    for entries in (1, 2 * 30**2):  # one prompt at a time; two of up to 30 tokens
        in_chunks = decode_batch(model, rows, [STOP], max_mask_entries=entries)
        assert [row.token_ids for row in in_chunks] == [row.token_ids for row in at_once]
        for mine, theirs in zip(in_chunks, at_once, strict=True):
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


def test_a_run_that_is_to_stop_does_not_wait_for_the_last_token(tmp_path: Path) -> None:
    model = make_model(tmp_path, "qwen2", tied=True).eval()
    looks: list[bool] = []

    def stopping() -> bool:
        looks.append(len(looks) >= 3)
        return looks[-1]

    engine = EmbeddedEngine(
        tmp_path, stop_token_ids=[STOP], dtype=torch.float32, device=torch.device("cpu"), max_batch_tokens=4096,
        stopping=stopping,
    )  # fmt: skip
    engine.update_weights(model.state_dict().items(), version=4)
    with pytest.raises(Abandoned):
        ask(engine, [GenerationRequest((5, 6), 2, 200, 1.0, 0), GenerationRequest((7,), 1, 200, 1.0, 1)])
    assert looks == [False, False, False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_ids": ()}, "prompt_ids: is empty"),
        ({"prompt_ids": (1, 127)}, "token 127 is outside the model's vocabulary of 127"),
        ({"prompt_ids": (1, -1)}, "token -1"),
        ({"prompt_ids": (5,) * 250}, "250 tokens \\+ max_new_tokens 12 = 262, beyond the model's context of 256"),
        ({"num_completions": 0}, "at least 1"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_bad_request_harms_no_other(
    qwen: tuple[EmbeddedEngine, PreTrainedModel], change: dict[str, object], message: str
) -> None:
    engine, _ = qwen
    good = GenerationRequest((5, 6), 2, 12, 1.0, 0)
    bad = GenerationRequest(**{"prompt_ids": (5,), "num_completions": 1, "max_new_tokens": 12, "temperature": 1.0,
                               "seed": 0, **change})  # type: ignore[arg-type]  # fmt: skip

    async def both() -> list[object]:
        return list(await asyncio.gather(engine.generate(bad), engine.generate(good), return_exceptions=True))

    error, answer = asyncio.run(both())
    assert isinstance(error, ValueError)
    with pytest.raises(ValueError, match=message):
        raise error
    assert [answer] == ask(engine, [good])


def test_a_cancelled_request_leaves_the_engine_usable(qwen: tuple[EmbeddedEngine, PreTrainedModel]) -> None:
    engine, _ = qwen
    asked = requests(3)

    async def cancel_one() -> tuple[Completion, ...]:
        tasks = [asyncio.create_task(engine.generate(request)) for request in asked]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.wait(tasks)
        assert tasks[0].cancelled()
        return tasks[1].result()

    assert asyncio.run(cancel_one())[0].token_ids == ask(engine, asked)[1][0].token_ids

    async def abandon() -> None:
        asyncio.create_task(engine.generate(asked[0]))  # noqa: RUF006
        await asyncio.sleep(0)

    asyncio.run(abandon())
    assert len(ask(engine, asked)) == 3


def test_no_weights_no_completions(tmp_path: Path) -> None:
    make_model(tmp_path, "qwen2")
    state = torch.get_rng_state()
    engine = EmbeddedEngine(
        tmp_path, stop_token_ids=[STOP], dtype=torch.float32, device=torch.device("cpu"), max_batch_tokens=10
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert engine.version == -1
    with pytest.raises(RuntimeError, match="no weights"):
        ask(engine, requests(1))
