"""The verifier pool: what math-verify knows, and every way in which a child can fail."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megatron_urpo.reward.verifiable.outcome import Outcome, verified
from megatron_urpo.reward.verifiable.pool import MAX_ANSWER_CHARACTERS, MathVerifier

ROOT = Path(__file__).parents[3]
DATA = ROOT.parent / "shared" / "data"
HANGS = r"99999999999!"
FILLS_MEMORY = "2^{2^{33}}"


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    made = MathVerifier(workers=2, timeout_seconds=1.0, memory_mib=512)
    yield made
    made.close()


def boxed(answer: str) -> str:
    return f"The answer is \\boxed{{{answer}}}."


def verify(verifier: MathVerifier, answer: str, *accepted: str) -> Outcome:
    return asyncio.run(verifier.verify(boxed(answer), accepted))


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come about in time"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Neither running nor a zombie of ours."""
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("answer", "accepted", "outcome"),
    [
        (r"\frac{1}{2}", ["0.5"], "correct"),
        (r"\frac{1}{2}", ["2"], "wrong"),
        (r"2\sqrt{2}", [r"\sqrt{8}"], "correct"),
        ("(x+1)^2", ["x^2+2x+1"], "correct"),
        ("10%", ["0.1"], "correct"),
        ("10", [r"10\%"], "correct"),
        (r"42\text{ cm}", ["42"], "correct"),
        ("x=5", ["5"], "correct"),
        ("0.333333", ["1/3"], "correct"),
        ("0.33", ["1/3"], "wrong"),
        (r"\{2, 1\}", [r"\{1, 2\}"], "correct"),
        ("[1, 2]", ["(1, 2)"], "wrong"),
        (r"\frac{1}{3}", ["0.5", r"\frac{2}{6}"], "correct"),
        (r"\text{I do not know}", ["x + 1"], "wrong"),
        (r"\frac{1}{", ["1"], "no_answer"),
    ],
)
def test_mathematics(verifier: MathVerifier, answer: str, accepted: list[str], outcome: Outcome) -> None:
    assert verify(verifier, answer, *accepted) == outcome


def test_rewards() -> None:
    assert verified("correct").reward == 1.0
    assert verified("wrong").reward == verified("no_answer").reward == 0.0
    assert verified("verifier_error").reward is None


def test_plain_answers_start_no_child() -> None:
    verifier = MathVerifier(workers=1, timeout_seconds=1.0, memory_mib=512)
    assert verify(verifier, " 7 ", "7") == "correct"
    assert verify(verifier, "8", "7") == "wrong"
    assert asyncio.run(verifier.verify("seven", ["7"])) == "no_answer"
    assert asyncio.run(verifier.verify("", ["7"])) == "no_answer"
    assert verify(verifier, "x" * (MAX_ANSWER_CHARACTERS + 1), "7") == "wrong"
    assert verifier.child_pids == ()
    verifier.close()


@pytest.mark.parametrize("answer", [HANGS, "9^{9^{9^{9}}}"])
def test_hostile_answers_are_errors_and_the_pool_goes_on(verifier: MathVerifier, answer: str) -> None:
    assert verify(verifier, r"\frac{1}{2}", "0.5") == "correct"
    start = time.monotonic()
    assert verify(verifier, answer, "x + 1") == "verifier_error"
    assert time.monotonic() - start < 30
    assert verify(verifier, r"\frac{1}{2}", "0.5") == "correct"


def test_memory_runs_out_before_time_does() -> None:
    """sympy hides this MemoryError, and the comparison ends as a mere difference."""
    verifier = MathVerifier(workers=1, timeout_seconds=60.0, memory_mib=512)
    start = time.monotonic()
    assert verify(verifier, FILLS_MEMORY, "x + 1") == "verifier_error"
    assert time.monotonic() - start < 40
    verifier.close()


def test_deeply_nested_input_ends(verifier: MathVerifier) -> None:
    answer = "(" * (MAX_ANSWER_CHARACTERS // 2 - 1) + "1" + ")" * (MAX_ANSWER_CHARACTERS // 2 - 1)
    assert verify(verifier, answer, "7") in ("wrong", "verifier_error")
    assert verify(verifier, r"\frac{1}{2}", "0.5") == "correct"


def test_a_child_that_stands_still_is_killed_at_the_wall_clock_deadline() -> None:
    verifier = MathVerifier(workers=1, timeout_seconds=0.3, memory_mib=512)
    assert verify(verifier, r"\frac{1}{2}", "0.5") == "correct"
    (pid,) = verifier.child_pids
    os.kill(pid, signal.SIGSTOP)  # uses no CPU time, so only the parent's clock can tell
    start = time.monotonic()
    assert verify(verifier, r"\frac{1}{2}", "0.5") == "verifier_error"
    assert 1.4 < time.monotonic() - start < 10
    assert is_gone(pid)
    assert verify(verifier, r"\frac{1}{2}", "0.5") == "correct"
    verifier.close()


def test_a_child_killed_at_work_is_an_error_and_one_killed_at_rest_is_replaced() -> None:
    verifier = MathVerifier(workers=1, timeout_seconds=20.0, memory_mib=512)
    assert verify(verifier, r"\frac{1}{2}", "0.5") == "correct"
    (first,) = verifier.child_pids
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: "State:\tZ" in Path(f"/proc/{first}/status").read_text())
    assert verify(verifier, r"\frac{1}{2}", "0.5") == "correct"
    (second,) = verifier.child_pids
    assert second != first

    async def kill_at_work() -> Outcome:
        task = asyncio.create_task(verifier.verify(boxed(HANGS), ["x + 1"]))
        await asyncio.sleep(0.3)
        os.kill(second, signal.SIGKILL)
        return await task

    start = time.monotonic()
    assert asyncio.run(kill_at_work()) == "verifier_error"
    assert time.monotonic() - start < 10
    assert is_gone(first)
    assert is_gone(second)
    verifier.close()


def test_300_at_once_with_some_hostile(verifier: MathVerifier) -> None:
    async def all_at_once() -> list[Outcome]:
        asked = []
        for number in range(300):
            answer = HANGS if number in (50, 200) else rf"\frac{{{number}}}{{7}}"
            truth = rf"\frac{{{2 * number}}}{{14}}" if number % 3 else rf"\frac{{{number}}}{{8}} + 1"
            asked.append(verifier.verify(boxed(answer), [truth]))
        return await asyncio.gather(*asked)

    outcomes = asyncio.run(all_at_once())
    for number, outcome in enumerate(outcomes):
        expected = "verifier_error" if number in (50, 200) else "correct" if number % 3 else "wrong"
        assert outcome == expected, number
    assert len(verifier.child_pids) <= 2


def test_deadlines_hold_while_the_event_loop_is_blocked() -> None:
    verifier = MathVerifier(workers=2, timeout_seconds=0.5, memory_mib=512)

    async def block() -> tuple[float, list[Outcome]]:
        await verifier.verify(boxed(r"\frac{1}{2}"), ["0.5"])
        pids = set(verifier.child_pids)
        hostile = asyncio.create_task(verifier.verify(boxed(HANGS), ["x + 1"]))
        await asyncio.sleep(0)
        benign = [asyncio.create_task(verifier.verify(boxed(rf"\frac{{{n}}}{{2}}"), [f"{n}/2"])) for n in range(9)]
        await asyncio.sleep(0)
        time.sleep(8)  # someone else computes on the loop's thread
        assert not pids & set(verifier.child_pids), "the hanging child outlived its deadline"
        start = time.monotonic()
        outcomes = await asyncio.gather(hostile, *benign)
        return time.monotonic() - start, outcomes

    waited, outcomes = asyncio.run(block())
    assert outcomes == ["verifier_error", *["correct"] * 9]
    assert waited < 0.5, "the work was not done while the loop was blocked"
    verifier.close()


def test_close_kills_children_at_work_and_leaves_no_zombie() -> None:
    verifier = MathVerifier(workers=2, timeout_seconds=60.0, memory_mib=512)

    async def close_at_work() -> Outcome:
        task = asyncio.create_task(verifier.verify(boxed(HANGS), ["x + 1"]))
        while not verifier.child_pids:
            await asyncio.sleep(0.02)
        pids.extend(verifier.child_pids)
        await asyncio.to_thread(verifier.close)
        return await task

    pids: list[int] = []
    start = time.monotonic()
    assert asyncio.run(close_at_work()) == "verifier_error"
    assert time.monotonic() - start < 15
    assert pids
    assert all(is_gone(pid) for pid in pids)
    verifier.close()
    with pytest.raises(RuntimeError):
        verify(verifier, r"\frac{1}{2}", "0.5")


@pytest.mark.parametrize("at_work", [False, True])
def test_children_die_with_a_killed_parent(at_work: bool) -> None:
    code = f"""if True:
        import asyncio, os, signal
        from megatron_urpo.reward.verifiable.pool import MathVerifier
        verifier = MathVerifier(1, 1.0, 512)
        async def main():
            await verifier.verify(r"\\boxed{{\\frac{{1}}{{2}}}}", ["0.5"])
            print(verifier.child_pids[0], flush=True)
            if {at_work}:
                task = asyncio.create_task(verifier.verify(r"\\boxed{{{HANGS}}}", ["x + 1"]))
                await asyncio.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        asyncio.run(main())
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    # The new parent may be slow to reap, so a zombie counts as dead here.
    status = Path(f"/proc/{int(done.stdout)}/status")
    wait_until(lambda: not status.exists() or "State:\tZ" in status.read_text())


def test_a_child_that_cannot_start_is_a_clear_error() -> None:
    verifier = MathVerifier(workers=1, timeout_seconds=1.0, memory_mib=30)
    with pytest.raises(RuntimeError, match=r"did not start .* verifier\.memory_mib .*now 30"):
        verify(verifier, r"\frac{1}{2}", "0.5")
    assert verifier.child_pids == ()
    verifier.close()


def test_a_child_is_light(verifier: MathVerifier) -> None:
    verify(verifier, r"\frac{1}{2}", "0.5")
    maps = Path(f"/proc/{verifier.child_pids[0]}/maps").read_text()
    assert "torch" not in maps
    assert "megatron" not in maps


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the public rows are not at {DATA}")
@pytest.mark.parametrize("name", ["train", "test"])
def test_every_gold_answer_of_gsm8k_is_right_and_another_is_wrong(verifier: MathVerifier, name: str) -> None:
    lines = (DATA / "gsm8k" / f"{name}.jsonl").read_text().splitlines()
    golds = [re.split(r"####\s*", json.loads(line)["answer"])[1].strip() for line in lines]
    assert len(golds) >= 200

    async def outcomes() -> list[Outcome]:
        right = [await verifier.verify(boxed(gold), [gold]) for gold in golds]
        plain = [await verifier.verify(boxed(gold.replace(",", "")), [gold]) for gold in golds]
        wrong = [await verifier.verify(boxed(f"{int(gold.replace(',', '')) + 1}"), [gold]) for gold in golds]
        assert set(wrong) == {"wrong"}
        return right + plain

    assert [verified(outcome).reward for outcome in asyncio.run(outcomes())] == [1.0] * (2 * len(golds))
