"""Makespan of a step's collection: groups judged as soon as they are played, against two barriers.

Scripted servers stand for the engine: they take a fixed time for each token, run a bounded number of requests and let
the others wait. Answers and verdicts have long-tailed lengths, which follow from the requests' seeds, so that both ways
of collecting ask for the same tokens; their rewards are compared. `two barriers` plays all prompts, then judges all
groups, by the same functions and the same engine. `bound` is what no order can beat: all tokens shared evenly by all
slots, or the longest chain of an answer and the verdict on its group. Time is slept, not computed: `cpu` is the part of
it in which this process computed, servers included.
"""

import argparse
import asyncio
import contextlib
import math
import random
import time
from collections.abc import Iterator, Sequence
from statistics import median

from megatron_urpo.config import Config
from megatron_urpo.inference.fleet import FleetEngine
from megatron_urpo.reward.self_scored import self_scored_rewards
from megatron_urpo.rollout.collect import collect, slots
from megatron_urpo.rollout.concurrency import run_all
from megatron_urpo.rollout.player import play
from megatron_urpo.rollout.referee import judge
from megatron_urpo.rollout.scoring_prompt import ScoringPrompts
from megatron_urpo.rollout.session import Session
from megatron_urpo.types import Group, InstructionPrompt, Message
from tests.support.rollout import CharacterTokenizer, ScriptedVerifier
from tests.support.scripted_fleet import connect_scripted, scripted_config, stamp
from tests.support.scripted_form import Asked, Cue, Script
from tests.support.scripted_server import ScriptedServer

Rewards = list[tuple[float | None, ...]]
GROUP = 8
MEAN_TOKENS, MAX_TOKENS = 48, 864  # of an answer: 900 and 16,384 in small
PROMPT_TOKENS = 50
TOKENIZER = CharacterTokenizer()
SCORES = TOKENIZER.encode(f"\\boxed{{{','.join(map(str, range(GROUP)))}}}")
(LETTER,) = TOKENIZER.encode("x")
TEMPLATE = {"prompt": "{question}{responses}", "response": "[{index}]{response}"}


def long_tailed(sigma: float, verdict: float) -> Script:
    """Log-normal lengths, cut at MAX_TOKENS: answers of mean MEAN_TOKENS, verdicts `verdict` times as long."""

    def script(number: int, asked: Asked) -> Cue:
        is_verdict = asked.temperature == 0
        mean = MEAN_TOKENS * (verdict if is_verdict else 1)
        length = round(random.Random(asked.seed).lognormvariate(math.log(mean) - sigma**2 / 2, sigma))
        end = SCORES if is_verdict else ()
        return Cue((LETTER,) * (min(length, MAX_TOKENS - 1) - len(end)) + end)

    return script


def two_barriers(prompts: list[InstructionPrompt], engine: FleetEngine, config: Config, step: int) -> Rewards:
    """Every prompt is played before the first group is judged."""
    session = Session(
        engine=engine,
        tokenizer=TOKENIZER,
        verifier=ScriptedVerifier(),
        config=config,
        version=step,
        scope=step,
        num_completions=config.rollout.completions_per_prompt,
        temperature=config.rollout.temperature,
        scoring=ScoringPrompts(config.referee, TOKENIZER),
    )
    places = slots(prompts)

    async def run() -> Rewards:
        played = await run_all(play(session, prompt, slot) for prompt, slot in zip(prompts, places, strict=True))
        judged = await run_all(
            judge(session, prompt, one.texts, slot) for prompt, one, slot in zip(prompts, played, places, strict=True)
        )
        return [self_scored_rewards(judging.votes) or () for judging in judged]

    return asyncio.run(run())


class Watch:
    """Seconds that a block took, and the share of them in which this process computed."""

    def __enter__(self) -> "Watch":
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._wall
        self.cpu = (time.process_time() - self._cpu) / self.seconds


def bound(groups: Sequence[Group], num_slots: int) -> int:
    """Token times."""
    answers = [[len(completion.token_ids) for completion in group.completions] for group in groups]
    verdicts = [sum(len(judgement.completion.token_ids) for judgement in group.judgements) for group in groups]
    longest = max(max(group) + verdict for group, verdict in zip(answers, verdicts, strict=True))
    return max(longest, math.ceil(sum(map(sum, answers), sum(verdicts)) / num_slots))


@contextlib.contextmanager
def engine_of(
    servers: int, num_slots: int, seconds_per_token: float, script: Script
) -> Iterator[tuple[FleetEngine, Config]]:
    """A cache that holds as many requests of full length as there are slots: slots are what is short."""
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                ScriptedServer(
                    script,
                    slots=num_slots,
                    seconds_per_token=seconds_per_token,
                    vocab_size=TOKENIZER.vocab_size,
                    context=2**20,
                    cache_tokens=num_slots * (PROMPT_TOKENS + MAX_TOKENS),
                )
            )
            for _ in range(servers)
        ]
        config = scripted_config(
            [server.url for server in started],
            {},
            rollout={"completions_per_prompt": GROUP, "max_new_tokens": MAX_TOKENS},
            referee={"template": TEMPLATE, "max_new_tokens": MAX_TOKENS, "max_prompt_tokens": 2**14},
        )
        engine = connect_scripted(config, TOKENIZER.stop_token_ids, TOKENIZER.vocab_size)
        stack.callback(engine.close)
        yield engine, config


def measure(arguments: argparse.Namespace, num_slots: int, verdict: float) -> str:
    """A row of the table: medians over the runs, which differ in all lengths."""
    prompts = [InstructionPrompt(f"p{i}", (Message("user", "Why?"),)) for i in range(arguments.prompts)]
    rows = []
    per_token, script = arguments.seconds_per_token, long_tailed(arguments.sigma, verdict)
    with engine_of(arguments.servers, num_slots, per_token, script) as (engine, config):
        for step in range(arguments.runs):
            stamp(engine, step)
            with Watch() as early:
                groups = collect(prompts, engine, TOKENIZER, ScriptedVerifier(), config, step).groups
            with Watch() as late:
                rewards = two_barriers(prompts, engine, config, step)
            if rewards != [group.rewards for group in groups] or engine.take_counts()["engine/lost"]:
                raise RuntimeError("the two ways did not ask for the same, or requests were lost")
            least = bound(groups, num_slots * arguments.servers) * per_token
            ratio = early.seconds / late.seconds
            rows.append((early.seconds, late.seconds, ratio, least, 100 * max(early.cpu, late.cpu)))
    first, second, ratio, least, cpu = (median(column) for column in zip(*rows, strict=True))
    spread = f"{min(row[2] for row in rows):.2f} - {max(row[2] for row in rows):.2f}"
    return (
        f"| {num_slots} | {verdict:g} | {first:.1f} | {second:.1f} | {ratio:.2f} ({spread}) | {least:.1f} | {cpu:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--slots", type=int, nargs="+", default=[128], help="requests that each server runs at once")
    parser.add_argument("--verdict", type=float, nargs="+", default=[2.0], help="mean length, in those of an answer")
    parser.add_argument("--sigma", type=float, default=1.0, help="of the logarithm of the lengths")
    parser.add_argument("--seconds-per-token", type=float, default=0.013)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{arguments.prompts} prompts of {GROUP} completions, {arguments.servers} servers, {arguments.runs} runs")
    print("| slots | verdict | early, s | two barriers, s | ratio (min - max) | bound, s | cpu % |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for num_slots in arguments.slots:
        for verdict in arguments.verdict:
            print(measure(arguments, num_slots, verdict), flush=True)


if __name__ == "__main__":
    main()
