"""Programs with one token changed that fail their tests when they are run plainly: `mutants.py HumanEval.jsonl.gz`.

Prints a JSON object a line, {"task_id", "program"}. A program of its own, since it forks for every try.
"""

import gzip
import io
import json
import keyword
import os
import resource
import signal
import sys
import tokenize
from collections.abc import Iterator
from typing import Any

_OTHER = {
    "+": "-", "-": "+", "*": "+", "/": "*", "//": "*", "%": "*", "<": ">=", ">": "<=", "<=": ">", ">=": "<", "==": "!=",
    "!=": "==", "and": "or", "or": "and", "True": "False", "False": "True", "in": "not in", "not": "", "max": "min",
    "min": "max", "break": "continue", "sum": "len", "sorted": "list", "+=": "-=", "append": "remove", "lower": "upper",
}  # fmt: skip
_SECONDS = 2


def mutants(row: dict[str, Any]) -> Iterator[str]:
    """Every program that differs from the canonical one in one token of its body."""
    whole = row["prompt"] + row["canonical_solution"]
    first = row["prompt"].count("\n")
    lines = whole.splitlines(keepends=True)
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(whole).readline) if t.start[0] > first]
    changed = [(token, _OTHER.get(token.string)) for token in tokens]
    changed += [(t, str(int(t.string) + 1)) for t in tokens if t.type == tokenize.NUMBER and t.string.isdigit()]
    # The others last: they are the coarser ones.
    changed += [(t, "'x'") for t in tokens if t.type == tokenize.STRING]
    changed += [(t, "None") for t in tokens if t.type == tokenize.NAME and not keyword.iskeyword(t.string)]
    for token, other in changed:
        if other is None:
            continue
        row_index, (start, end) = token.start[0] - 1, (token.start[1], token.end[1])
        line = lines[row_index]
        yield "".join([*lines[:row_index], line[:start] + other + line[end:], *lines[row_index + 1 :]])


def fails(program: str, row: dict[str, Any]) -> bool:
    """Whether the tests raise over it, in a process of its own; one that runs out of time does not count."""
    pid = os.fork()
    if pid == 0:
        signal.setitimer(signal.ITIMER_REAL, _SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            compile(program, "mutant", "exec")
        except SyntaxError:
            os._exit(0)
        try:
            exec(f"{program}\n{row['test']}\ncheck({row['entry_point']})", {"__name__": "plain"})
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


if __name__ == "__main__":
    with gzip.open(sys.argv[1], "rt") as file:
        for row in map(json.loads, file):
            chosen = next((program for program in mutants(row) if fails(program, row)), None)
            print(json.dumps({"task_id": row["task_id"], "program": chosen}), flush=True)
