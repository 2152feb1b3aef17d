"""What a forked process does with one program: run it, serve calls of its function, or check another's function.

The job is JSON; descriptors 0 and 1 are the program's input and output (`run`) or a channel of frames:

    serve   in   C arguments
            out  V [value, arguments after the call], O (the value is not plain) or X the exception's name
    check   out  L (tests are loaded), C arguments, then P (passed), F (failed) or N (arguments are not plain)
            in   V, O or X of a call

`serve` runs the candidate and knows no expected value. `check` runs the tests elsewhere, in a sandbox that no candidate
enters, and meets plain data only.
"""

import builtins
import os
import sys
import types
from typing import Any

from megatron_urpo.reward.verifiable.code.inside.plain import Channel, NotPlain, Opaque, dumps, loads

Job = dict[str, str]


def perform(job: Job) -> None:
    """Returns, raises or exits as the program does."""
    if job["mode"] == "run":
        _run(job)
        return
    channel = Channel(os.dup(0), os.dup(1))
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1):  # what a program prints must not look like a frame
        os.dup2(null, descriptor)
    (_serve if job["mode"] == "serve" else _check)(job, channel)


def _run(job: Job) -> None:
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    module = _module("__main__")
    exec(compile(job["program"], "<program>", "exec"), module.__dict__)


def _serve(job: Job, channel: Channel) -> None:
    module = _module("solution")
    exec(compile(job["prefix"], "<prefix>", "exec"), module.__dict__)
    classes = _classes(module)
    exec(compile(job["program"], "<program>", "exec"), module.__dict__)
    # A program may define the same classes again: its instances are known by name, its arguments are made of its own.
    classes = {name: module.__dict__.get(name, known) for name, known in classes.items()}
    while True:
        try:
            _, data = channel.receive()
        except EOFError:
            return
        arguments, keywords = loads(data, classes)
        try:
            value = _resolve(module, job["entry"])(*arguments, **keywords)
        except Exception as error:
            channel.send(b"X", type(error).__name__.encode("ascii", "replace")[:80])
            continue
        try:
            channel.send(b"V", dumps([value, arguments], classes))
        except NotPlain:
            channel.send(b"O")


def _check(job: Job, channel: Channel) -> None:
    module = _module("tests")
    exec(compile(job["prefix"], "<prefix>", "exec"), module.__dict__)
    classes = _classes(module)
    exec(compile(job["test_code"], "<tests>", "exec"), module.__dict__)

    def candidate(*arguments: Any, **keywords: Any) -> Any:
        try:
            data = dumps([arguments, keywords], classes)
        except NotPlain:
            channel.send(b"N")
            os._exit(0)
        channel.send(b"C", data)
        letter, data = channel.receive()
        if letter == b"X":
            raise _exception(data.decode())
        if letter == b"O":
            return Opaque()
        value, after = loads(data, classes)
        for mine, theirs in zip(arguments, after, strict=True):
            _follow(mine, theirs)
        return value

    # Some tests call the function by its name, as they can where all stands in one file.
    module.__dict__.setdefault(job["entry"], candidate)
    channel.send(b"L")
    try:
        module.__dict__["check"](candidate)
    except BaseException:  # tests fail by raising, whatever they raise
        channel.send(b"F")
        return
    channel.send(b"P")


def _follow(mine: Any, theirs: Any) -> None:
    """An argument that the function changed in place is changed here as well."""
    if type(mine) is not type(theirs):
        return
    if isinstance(mine, list):
        mine[:] = theirs
    elif isinstance(mine, dict | set):
        mine.clear()
        mine.update(theirs)


def _exception(name: str) -> Exception:
    """The built-in exception of that name; tests may expect one."""
    kind = getattr(builtins, name, None)
    return (
        kind()
        if isinstance(kind, type) and issubclass(kind, Exception) and kind.__init__ is not None
        else RuntimeError()
    )


def _classes(module: types.ModuleType) -> dict[str, type]:
    """Those that the prefix defines, not those that it imports."""
    return {
        name: item
        for name, item in vars(module).items()
        if isinstance(item, type) and item.__module__ == module.__name__
    }


def _resolve(module: types.ModuleType, entry: str) -> Any:
    """`f`, `Class.method` or `Class().method`; a plain name that only class Solution has is its method."""
    value: Any = module
    if "." not in entry and not hasattr(module, entry) and hasattr(module, "Solution"):
        value = module.Solution()
    for part in entry.split("."):
        value = getattr(value, part.removesuffix("()"))
        if part.endswith("()"):
            value = value()
    return value


def _module(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    sys.modules[name] = module
    return module
