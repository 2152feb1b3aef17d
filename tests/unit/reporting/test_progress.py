import io

from rich.console import Console

from megatron_urpo.reporting.progress import Progress, before_after_table


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=200)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_one_plain_line_a_step_without_a_terminal() -> None:
    out, time = console(terminal=False), iter([0.0, 0.0, 2.0, 6.0])
    with Progress(10, start=4, console=out, now=lambda: next(time)) as progress:
        progress.phase("rollout")
        progress.step(5, {"reward/mean/reasoning": 0.75, "reward/mean/instruction": 3.0, "loss": 1.0})
        progress.say("saved [step 5]")
        progress.step(6, {})
    assert written(out).splitlines() == [
        "step 5/10  2.00 s  reasoning 0.750  instruction 3.000  left 0:00:10",
        "saved [step 5]",
        "step 6/10  4.00 s  left 0:00:12",
    ]


def test_a_live_line_on_a_terminal() -> None:
    out = console(terminal=True)
    with Progress(3, console=out) as progress:
        progress.phase("judge [1]")
        progress.step(1, {"reward/mean/preference": 0.25})
        progress.phase("update")
    assert "1/3" in written(out)
    assert "update" in written(out)
    assert "preference 0.250" in written(out)


def test_before_and_after() -> None:
    first = {"step": 0, "eval/reasoning/accuracy": 0.5, "eval/gone": 1.0, "reward/mean": 3.0}
    last = {"step": 20, "eval/reasoning/accuracy": 0.75, "eval/new": 2.0, "eval/null": None}
    table = before_after_table(first, last)
    rows = list(zip(*(list(column.cells) for column in table.columns), strict=True))
    assert rows == [
        ("reasoning/accuracy", "0.500", "0.750", "+0.250"),
        ("gone", "1.000", "–", "–"),
        ("new", "–", "2.000", "–"),
        ("null", "–", "–", "–"),
    ]
    assert "step 0 and step 20" in str(table.title)
