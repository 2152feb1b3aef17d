"""The engine over servers that misbehave on cue: what is asked again, what is given up, who serves."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from megatron_urpo.inference.fleet import FleetEngine
from megatron_urpo.inference.fleet import member as members
from megatron_urpo.inference.fleet.member import State
from megatron_urpo.protocols import EngineError, GenerationFailed, WeightsLost
from megatron_urpo.types import Completion, GenerationRequest, VersionSpan
from tests.support.scripted_fleet import connect_scripted, scripted_config, stamp
from tests.support.scripted_form import Asked, Cue, Fate, Script, as_it_should
from tests.support.scripted_server import ScriptedServer

STOP, VOCABULARY = 2, 127
PATIENCE = {"ready_seconds": 20.0, "request_seconds": 20.0}


@contextlib.contextmanager
def fleet(*scripts: Script, **servers: Any) -> Iterator[tuple[FleetEngine, list[ScriptedServer], list[str]]]:
    """The engine, its servers, and what it told."""
    told: list[str] = []
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(ScriptedServer(script)) for script in scripts]
        config = scripted_config([server.url for server in started], {**PATIENCE, **servers})
        engine = stack.enter_context(contextlib.closing(connect_scripted(config, [STOP], VOCABULARY, told.append)))
        yield engine, started, told


def request(number: int = 0, completions: int = 1, prompt: Sequence[int] = (5, 6, 7)) -> GenerationRequest:
    return GenerationRequest(tuple(prompt), completions, 8, 1.0, number, (1, number), number)


def ask(engine: FleetEngine, *requests: GenerationRequest) -> list[tuple[Completion, ...]]:
    async def all_of_them() -> list[tuple[Completion, ...]]:
        return list(await asyncio.gather(*(engine.generate(one) for one in requests)))

    return asyncio.run(all_of_them())


def first_then(first: Cue) -> Script:
    """`first` for the first request of a server, then as it should."""
    return lambda number, asked: first if number == 0 else Cue()


def states(engine: FleetEngine) -> list[State]:
    return [member.state for member in engine._members]


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_was_said_arrives_token_by_token() -> None:
    def script(number: int, asked: Asked) -> Cue:
        return Cue(tokens=(11, 12, 13))

    with fleet(script) as (engine, (server,), _):
        ((completion,),) = ask(engine, request(prompt=(9, 8, 7)))
        assert completion.token_ids == (11, 12, 13, STOP)
        assert len(completion.logprobs) == 4
        assert (completion.finish_reason, completion.spans) == ("stop", (VersionSpan(0, 0, 4),))
        (record,) = server.records
        assert record.asked == Asked((9, 8, 7), 8, 1.0, (STOP,), 0)


@pytest.mark.parametrize(
    ("cue", "cause"),
    [
        (Cue(fate="crash"), "no_answer"),
        (Cue(fate="half"), "no_answer"),
        (Cue(fate="not_json"), "no_answer"),
        (Cue(fate="other_json"), "bad_answer"),
        (Cue(fate="few_logprobs"), "bad_answer"),
        (Cue(fate="foreign_token"), "bad_answer"),
        (Cue(fate="too_many_tokens"), "bad_answer"),
        (Cue(fate="abort"), "bad_answer"),
        (Cue(status=500), "server_error"),
        (Cue(status=503), "server_error"),
    ],
)
def test_a_lost_answer_is_asked_for_again_and_counted(cue: Cue, cause: str) -> None:
    with fleet(first_then(cue)) as (engine, (server,), _):
        ((completion,),) = ask(engine, request())
        assert len(completion.token_ids) == 8
        assert len(server.records) == 2
        counts = engine.take_counts()
        assert (counts["engine/lost"], counts[f"engine/lost/{cause}"]) == (1, 1)
        assert engine.take_counts()["engine/lost"] == 0


def test_a_request_that_is_forgotten_is_asked_for_again_after_its_deadline() -> None:
    with fleet(first_then(Cue(fate="hang")), request_seconds=2.0) as (engine, (server,), _):
        start = time.monotonic()
        ask(engine, request())
        assert time.monotonic() - start >= 1.9
        assert server.outcomes[1:] == ["answer"]


def test_a_refused_request_is_not_repeated() -> None:
    with fleet(first_then(Cue(status=400, message="no such thing"))) as (engine, (server,), _):
        with pytest.raises(GenerationFailed, match="no such thing"):
            ask(engine, request())
        assert len(server.records) == 1
        assert states(engine) == [State.HEALTHY]


def test_a_request_that_never_succeeds_is_given_up_and_the_others_are_not() -> None:
    def script(number: int, asked: Asked) -> Cue:
        return Cue(status=500) if asked.prompt_ids == (1, 1) else Cue()

    async def both(engine: FleetEngine) -> list[Any]:
        asked = [engine.generate(request(0, prompt=(1, 1))), engine.generate(request(1))]
        return await asyncio.gather(*asked, return_exceptions=True)

    with fleet(script) as (engine, (server,), _):
        failed, fine = asyncio.run(both(engine))
        assert isinstance(failed, GenerationFailed)
        assert "3 attempts failed" in str(failed)
        assert len(fine) == 1
        assert server.outcomes.count("refused") == 3


def test_an_id_outside_the_vocabulary_never_leaves() -> None:
    with fleet(as_it_should) as (engine, (server,), _):
        for prompt in ((5, VOCABULARY), (-1,), ()):
            with pytest.raises(ValueError, match="prompt_ids"):
                ask(engine, request(prompt=prompt))
        assert server.records == []


def test_another_version_is_refused_and_its_server_set_aside() -> None:
    stale = first_then(Cue(version="7"))
    with fleet(stale, as_it_should, max_restarts=0) as (engine, _, told):
        answers = ask(engine, request(0), request(1))
        assert {span.version for (completion,) in answers for span in completion.spans} == {0}
        wait_for(lambda: states(engine) == [State.GONE, State.HEALTHY])
        assert [line for line in told if "by version [7], it was given 0" in line]


def test_a_dead_server_is_replaced_by_the_others_and_comes_back_with_the_next_weights() -> None:
    def slow(number: int, asked: Asked) -> Cue:
        return Cue(seconds=0.2)

    with fleet(slow, slow) as (engine, (first, _), told):

        async def kill_in_the_middle() -> list[tuple[Completion, ...]]:
            asked = [asyncio.create_task(engine.generate(request(i, completions=4))) for i in range(20)]
            while not first.records:
                await asyncio.sleep(0.01)
            first.die()
            return list(await asyncio.gather(*asked))

        answers = asyncio.run(kill_in_the_middle())
        assert [len(group) for group in answers] == [4] * 20
        assert engine.take_counts()["engine/lost/no_answer"] > 0
        first.revive()
        wait_for(lambda: states(engine)[0] is State.STALE)
        asked_before = len(first.records)
        ask(engine, *(request(i) for i in range(8)))
        assert len(first.records) == asked_before  # it serves no old weights
        stamp(engine, 1)
        ask(engine, *(request(i) for i in range(8)))
        assert len(first.records) > asked_before
        told_of_first = [line.split(" is ")[1].split(":")[0] for line in told if line.startswith(first.url)]
        assert told_of_first == ["stale", "suspect", "dead", "restarting", "stale"]


def test_all_dead_and_back_means_weights_are_lost() -> None:
    with fleet(lambda number, asked: Cue(seconds=1.0)) as (engine, (server,), _):

        async def die_and_revive() -> None:
            asked = asyncio.create_task(engine.generate(request()))
            while not server.records:
                await asyncio.sleep(0.01)
            server.die()
            server.revive()
            await asked

        with pytest.raises(WeightsLost):
            asyncio.run(die_and_revive())
        stamp(engine, 0)
        assert len(ask(engine, request())) == 1


def test_all_dead_for_good_is_an_error() -> None:
    with fleet(as_it_should, max_restarts=0) as (engine, (server,), _):
        server.die()
        with pytest.raises(EngineError, match="none of the 1 servers is left"):
            ask(engine, request())
        with pytest.raises(EngineError):
            engine.updatable()


def test_a_server_that_answers_again_stays() -> None:
    with fleet(first_then(Cue(fate="crash"))) as (engine, _, told):
        ask(engine, request())
        wait_for(lambda: states(engine) == [State.HEALTHY])
        assert told[-1].endswith(members.ANSWERS_AGAIN)
        assert engine.version == 0


def test_every_server_is_asked_and_one_that_just_died_is_left_out() -> None:
    with fleet(as_it_should, as_it_should) as (engine, (first, second), _):
        assert engine.ask_each(request()).keys() == {first.url, second.url}
        first.die()
        assert engine.ask_each(request()).keys() == {second.url}
    with fleet(lambda number, asked: Cue(fate="few_logprobs")) as (engine, _, _), pytest.raises(EngineError):
        engine.ask_each(request())


def test_cancelled_requests_leave_no_load_behind() -> None:
    async def start_and_cancel(engine: FleetEngine, server: ScriptedServer) -> None:
        asked = [asyncio.create_task(engine.generate(request(i, completions=4))) for i in range(10)]
        while len(server.records) < 3 or len(engine._admission._waiting) < 37:
            await asyncio.sleep(0.01)
        assert len(server.records) == 3  # of 11 tokens each: no more fit
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    with fleet(lambda number, asked: Cue(seconds=30.0), max_tokens_in_flight=40) as (engine, (server,), _):
        asyncio.run(start_and_cancel(engine, server))
        (member,) = engine._members
        wait_for(lambda: member.tokens == 0)


FATES: tuple[Fate, ...] = ("crash", "half", "not_json")


def test_many_requests_with_faults_are_each_answered_once() -> None:
    """The first attempt of every fifth request fails, wherever and whenever it arrives; so each needs two at most."""
    attempts: Counter[int] = Counter()

    def script(number: int, asked: Asked) -> Cue:
        attempts[asked.seed] += 1  # both servers' threads count, but one seed is never at both at once
        if asked.seed % 5 == 0 and attempts[asked.seed] == 1:
            return Cue(fate=FATES[asked.seed % 3])
        return Cue(tokens=(3 + asked.seed % 100,))

    with fleet(script, script) as (engine, servers, _):
        answers = ask(engine, *(request(2 * i, completions=2) for i in range(300)))
        said = [[completion.token_ids for completion in group] for group in answers]
        assert said == [[(3 + (2 * i + j) % 100, STOP) for j in range(2)] for i in range(300)]
        outcomes = Counter(outcome for server in servers for outcome in server.outcomes)
        assert outcomes == {"answer": 600, "crash": 40, "half": 40, "not_json": 40}
        assert engine.take_counts()["engine/lost"] == 120
