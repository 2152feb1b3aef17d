"""Verifications a second by the verifiers of training, beside the floor of a process for each program.

math plain      integers and decimals, decided in this process
math symbolic   fractions against fractions, in the pool's children
code stdin      one short case: a fork in a sandbox with namespaces
code calls      one call
code functional one assertion: two forks, in two sandboxes
floor: fork     a bare fork that exits, from a small process
floor: python   fork and exec of `python -I -S -c pass`, what a program would cost without a fork server
"""

import argparse
import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable

from megatron_urpo.config.reward import CodeConfig, VerifierConfig
from megatron_urpo.reward.verifiable.verifier import RuleVerifier
from megatron_urpo.types import CallTests, CodeTests, FunctionalTest, ReasoningPrompt, StdinTests

FORKS = """
import os, sys, time
start = time.perf_counter()
for _ in range(int(sys.argv[1])):
    pid = os.fork()
    if pid == 0: os._exit(0)
    os.waitpid(pid, 0)
print(time.perf_counter() - start)
"""
CASES: dict[str, tuple[str, CodeTests]] = {
    "code stdin": ("print(2 * int(input()))", StdinTests(("21",), ("42",))),
    "code calls": ("def f(x): return 2 * x", CallTests("f", ("21",), ("42",))),
    "code functional": ("def f(x): return 2 * x", FunctionalTest("", "def check(f):\n    assert f(21) == 42", "f")),
}


def rate(verifier: RuleVerifier, count: int, item: Callable[[int], tuple[str, ReasoningPrompt]]) -> float:
    """Verifications a second, all asked at once, processes warm. Raises AssertionError where one is not right."""

    async def all_at_once(number: int) -> None:
        results = await asyncio.gather(*(verifier.verify(*item(i)) for i in range(number)))
        assert all(result.outcome == "correct" for result in results), results[0]

    asyncio.run(all_at_once(min(count, 50)))
    start = time.perf_counter()
    asyncio.run(all_at_once(count))
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="verifications of each kind (plain: 20 times that)")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    count = arguments.count
    config = VerifierConfig(workers=arguments.workers, code=CodeConfig(workers=arguments.workers))
    with contextlib.closing(RuleVerifier(config)) as verifier:
        show("math plain", rate(verifier, 20 * count, lambda i: (f"\\boxed{{{i}}}", answer(f"{i:,}"))))
        symbolic = rate(verifier, count, lambda i: (f"\\boxed{{\\frac{{{i}}}{{7}}}}", answer(f"{2 * i}/14")))
        show("math symbolic", symbolic)
        for name, (program, tests) in CASES.items():
            item = (f"```python\n{program}\n```", ReasoningPrompt("", (), (), tests=tests))
            show(name, rate(verifier, count, lambda _, item=item: item))  # type: ignore[misc]
    command = [sys.executable, "-I", "-S", "-c"]
    forks = subprocess.run([*command, FORKS, str(count)], capture_output=True, text=True, check=True).stdout
    show("floor: fork", count / float(forks))
    start = time.perf_counter()
    for _ in range(min(count, 200)):
        subprocess.run([*command, "pass"], check=True)
    show("floor: python", min(count, 200) / (time.perf_counter() - start))


def answer(text: str) -> ReasoningPrompt:
    return ReasoningPrompt("", (), (text,))


def show(name: str, per_second: float) -> None:
    print(f"{name:16} {per_second:10,.0f} a second", flush=True)


if __name__ == "__main__":
    main()
