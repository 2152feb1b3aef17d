"""The child process of `pool.py`: compares answers with math-verify until its standard input closes.

Run as a program of its own, by path, and importing nothing of the package, so that a child starts fast and holds
little memory. One JSON object a line:

    in    {"answer": text, "accepted": [text]}
    out   {"ready": true} or {"failed": reason} once, then {"result": "correct" | "wrong" | "error"} for each line in

Hostile input is expected: it runs forever, fills memory or overflows the stack. What ends it:

- a timer of CPU time raises inside Python code; the child then exits without an answer;
- a second, longer one has the kernel kill the child where C code (the power of huge integers) hears no signal;
- the limit on address space turns a memory bomb into a MemoryError, after which the child exits as well: its heap is
  no longer worth trusting. sympy catches some of these and math-verify then sees a mere difference, so a `wrong` from a
  child that came more than halfway to its limit is not believed either (huge integers grow by doubling).

CPU time and not wall-clock time: on a busy machine a slow child must not turn right answers into errors.
"""

import functools
import json
import os
import resource
import signal
import sys
from typing import Any, NoReturn

_KILL_FACTOR = 1.5  # the kernel's limit over the timer's


class _OutOfTime(BaseException):
    """Not an Exception: math-verify and sympy catch those and go on."""


def main(timeout_seconds: float, memory_mib: int) -> None:
    # Parsers print to standard output when they feel like it; replies need a channel of their own.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    _limit(resource.RLIMIT_AS, memory_mib << 20)
    _limit(resource.RLIMIT_CORE, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is the parent's to handle
    signal.signal(signal.SIGVTALRM, _out_of_time)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    try:
        import math_verify  # noqa: F401
    except (ImportError, MemoryError, OSError) as error:
        replies.write(json.dumps({"failed": f"{type(error).__name__}: {error}"}) + "\n")
        return
    replies.write('{"ready": true}\n')
    trusted_bytes = (_peak_bytes() + resource.getrlimit(resource.RLIMIT_AS)[0]) // 2
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, timeout_seconds * _KILL_FACTOR)
        signal.setitimer(signal.ITIMER_VIRTUAL, timeout_seconds)
        try:
            result = compare(request["answer"], request["accepted"])
        except (_OutOfTime, MemoryError):
            os._exit(1)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if result == "wrong" and _peak_bytes() > trusted_bytes:
            os._exit(1)
        replies.write(json.dumps({"result": result}) + "\n")


def compare(answer: str, accepted: list[str]) -> str:
    """`correct` where any accepted answer matches, else `error` where a comparison failed, else `wrong`."""
    import math_verify

    result = "wrong"
    for truth in accepted:
        try:
            if math_verify.verify(_parse_truth(truth), _parse(answer), timeout_seconds=None, raise_on_error=True):
                return "correct"
        except MemoryError:
            raise
        except Exception:  # sympy raises of every kind on hostile text; the parent counts it as `verifier_error`
            result = "error"
    return result


@functools.lru_cache(maxsize=1024)
def _parse_truth(truth: str) -> list[Any]:
    """A group asks about the same truth G times."""
    return _parse(truth)


def _parse(text: str) -> list[Any]:
    import math_verify

    # One box around the whole answer: without it math-verify would pick out of the text what looks like one.
    boxed = "\\boxed{" + text + "}"
    parsed: list[Any] = math_verify.parse(boxed, parsing_timeout=None, raise_on_error=True)
    return parsed


def _limit(which: int, value: int) -> None:
    """Lowers both limits; an unprivileged process cannot raise one, so a stricter one from outside stays."""
    _, hard = resource.getrlimit(which)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _peak_bytes() -> int:
    """The most address space ever held. (The peak that getrusage gives may be the parent's, from before exec.)"""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmPeak:"))


def _out_of_time(signum: int, frame: object) -> NoReturn:
    raise _OutOfTime


if __name__ == "__main__":
    main(timeout_seconds=float(sys.argv[1]), memory_mib=int(sys.argv[2]))
