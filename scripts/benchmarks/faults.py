"""Many small requests through the engine to scripted servers of which some requests crash and some hang.

A crash breaks the connection off, a hang lets the deadline pass. The servers run in a process of their own and answer
with the prompt itself, so that every answer can be told to be that of its request; afterwards they tell which requests
they answered, and how often. The requests come in rounds, as the steps of a training bring them. Memory is what this
process holds (resident), sampled ten times a second: with nothing kept it stays where the first rounds have left it.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median

import psutil

from megatron_urpo.inference.fleet import FleetEngine
from megatron_urpo.protocols import GenerationFailed
from megatron_urpo.types import GenerationRequest
from tests.support.scripted_fleet import connect_scripted, scripted_config
from tests.support.scripted_form import Asked, Cue, Script
from tests.support.scripted_server import ScriptedServer

STOP, FIRST_ID, BASE = 2, 10, 100
DIGITS = 4
VOCAB_SIZE = FIRST_ID + BASE
NEW_TOKENS = 16
IN_FLIGHT = 64  # requests of each server
SECONDS_PER_TOKEN = 0.002
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Faults:
    """Shares of the requests that crash and that hang."""

    crashes: float
    hangs: float

    def script(self, server: int) -> Script:
        def answer(number: int, asked: Asked) -> Cue:
            drawn = random.Random(f"{server} {number}").random()
            if drawn < self.crashes:
                return Cue(fate="crash")
            return Cue(asked.prompt_ids, fate="hang" if drawn < self.crashes + self.hangs else "answer")

        return answer


def serve(pipe: Connection, num_servers: int, faults: Faults) -> None:
    """A process: sends the addresses, waits for a word, sends (prompt, outcome) of every request."""
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(
                ScriptedServer(faults.script(index), seconds_per_token=SECONDS_PER_TOKEN, vocab_size=VOCAB_SIZE)
            )
            for index in range(num_servers)
        ]
        pipe.send([server.url for server in servers])
        pipe.recv()
        pipe.send([(record.asked.prompt_ids, record.outcome) for server in servers for record in server.records])


def prompt_of(number: int) -> tuple[int, ...]:
    """The number in digits."""
    return tuple(FIRST_ID + number // BASE**place % BASE for place in range(DIGITS))


async def ask(engine: FleetEngine, number: int) -> str:
    """What became of request `number`."""
    request = GenerationRequest(prompt_of(number), 1, NEW_TOKENS, 1.0, seed=number, order=(1, number), group=number)
    try:
        (completion,) = await engine.generate(request)
    except GenerationFailed:
        return "failed"
    return "answered" if completion.token_ids == (*request.prompt_ids, STOP) else "answered wrongly"


async def one_round(engine: FleetEngine, numbers: range) -> Counter[str]:
    return Counter(await asyncio.gather(*(ask(engine, number) for number in numbers)))


@contextlib.contextmanager
def sampled_memory() -> Iterator[list[float]]:
    """Resident MiB of this process, ten times a second until the block ends."""
    process, samples, done = psutil.Process(), list[float](), threading.Event()

    def sample() -> None:
        while not done.wait(0.1):
            samples.append(process.memory_info().rss / MEBIBYTE)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def report(became: Counter[str], counts: Counter[str], asked: list[tuple[tuple[int, ...], str]], total: int) -> None:
    outcomes = Counter(outcome for _, outcome in asked)
    answers = Counter(prompt for prompt, outcome in asked if outcome == "answer")
    known = {prompt_of(number) for number in range(total)}
    print(f"requests: {total}; {dict(became)}; unaccounted: {total - sum(became.values())}")
    print(f"servers saw {len(asked)} attempts: {dict(outcomes)}")
    print(
        f"by identity: answered once {sum(count == 1 for count in answers.values())},"
        f" more than once {sum(count > 1 for count in answers.values())}, unknown {len(answers.keys() - known)}"
    )
    print(f"client counted: {dict(counts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--round", type=int, default=500)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--crashes", type=float, default=0.01)
    parser.add_argument("--hangs", type=float, default=0.01)
    parser.add_argument("--deadline", type=float, default=3.0, help="seconds for one completion")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    faults = Faults(arguments.crashes, arguments.hangs)
    process = context.Process(target=serve, args=(theirs, arguments.servers, faults), daemon=True)
    process.start()
    room = IN_FLIGHT * (DIGITS + NEW_TOKENS)
    config = scripted_config(ours.recv(), {"max_tokens_in_flight": room, "request_seconds": arguments.deadline})
    engine = connect_scripted(config, [STOP], VOCAB_SIZE)
    became, counts = Counter[str](), Counter[str]()
    start = time.perf_counter()
    with sampled_memory() as memory:
        for first in range(0, arguments.requests, arguments.round):
            numbers = range(first, min(first + arguments.round, arguments.requests))
            became += asyncio.run(one_round(engine, numbers))
            counts.update({name: int(count) for name, count in engine.take_counts().items() if "lost" in name})
    seconds = time.perf_counter() - start
    engine.close()
    ours.send("done")
    report(became, counts, ours.recv(), arguments.requests)
    process.join()
    quarter, half = len(memory) // 4, len(memory) // 2
    first_quarter, second_half = median(memory[:quarter]), median(memory[half:])
    print(
        f"{seconds:.1f} s; memory: first quarter {first_quarter:.1f} MiB, second half {second_half:.1f} MiB (medians)"
    )
    print(f"at the end {memory[-1]:.1f} MiB, most {max(memory):.1f} MiB, {len(memory)} samples")


if __name__ == "__main__":
    main()
