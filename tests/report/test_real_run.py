"""A real, short run ends with its report, and the browser opens it."""

from pathlib import Path

from tests.loop.runs import train
from tests.report.browser import Page
from tests.support.miniature import Miniature

CURRICULUM = "[{mix: {preference: 1, reasoning: 1, instruction: 1}}]"


def test_every_run_ends_with_a_report(miniature: Miniature, tmp_path: Path, page: Page) -> None:
    run = train(miniature, tmp_path / "run", **{"num_steps": 2, "data.curriculum": CURRICULUM})
    page.show(1400)
    page.open(run / "report.html")
    assert page.console() == []
    assert "2 of 2" in page.text("#top")
    assert page.text(".state") == "Finished"
    assert page.num_groups_found() == page.run(
        "return JSON.parse(document.getElementById('data').textContent).num_groups"
    )
    for task in ("reasoning", "preference", "instruction"):
        page.set_filter("task", task)
        page.run("document.querySelector('.row').click()")
        page.settle()
        assert page.count(".detail .completion") > 1
    assert page.console() == []
