"""HumanEval and files like it: `{prompt, entry_point, test}`, a function to complete and `def check(candidate)`."""

import re

from megatron_urpo.data.sources.base import Fields, Reader, Row, RowError, text, user

REQUEST = "Complete this Python function. Answer with the whole function, its imports included, in a ```python block."


def read(row: Row) -> Fields:
    prompt, test = text(row, "prompt"), text(row, "test")
    if not re.search(r"^def check\(", test, re.MULTILINE):
        raise RowError("test has no `def check(`")
    imports = re.findall(r"^(?:import|from) .+$", prompt, re.MULTILINE)
    tests = {
        "kind": "functional",
        "import_prefix": "".join(f"{line}\n" for line in imports),
        "test_code": test,
        "entry_point": text(row, "entry_point"),
    }
    return {"messages": user(f"{REQUEST}\n```python\n{prompt.rstrip()}\n```"), "tests": tests}


READER = Reader("reasoning", ("prompt", "entry_point", "test"), read)
