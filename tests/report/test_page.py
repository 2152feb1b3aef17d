"""The page in a real browser: it draws without a complaint, its groups open and filter, and hostile text stays text."""

import json
from pathlib import Path

import pytest

from megatron_urpo.reporting.report import write_report
from tests.report import runs
from tests.report.browser import Page

WIDE, PHONE = 1400, 390


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, WIDE])
def test_draws_at_every_width_in_both_colours(page: Page, report: Path, tmp_path: Path, width: int, dark: bool) -> None:
    page.show(width, dark)
    page.open(report)
    assert page.console() == []
    assert page.run("return document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    assert page.count("svg.plot") > 15
    assert page.count("svg.plot path.curve") > 15
    assert page.run("return [...document.querySelectorAll('svg.plot')].every(plot => plot.childElementCount > 0)")
    background = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(18, 20, 23)") == dark
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_from_its_background(page: Page, report: Path, dark: bool) -> None:
    page.show(WIDE, dark)
    page.open(report)
    page.run("document.querySelector('.row').click()")
    faint = page.run("""
        const light = ([r, g, b]) => [r, g, b].map((part) => part / 255)
          .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
          .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
        const parts = (color) => color.match(/[0-9.]+/g).map(Number);
        const back = (node) => {
          for (let at = node; at; at = at.parentElement) {
            const color = parts(getComputedStyle(at).backgroundColor);
            if (color.length === 3) return color;
          }
          return [255, 255, 255];
        };
        const found = new Set();
        for (const node of document.querySelectorAll('header *, nav *, main *')) {
          const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
          if (!own || node.closest('svg, option')) continue;
          const [a, b] = [light(parts(getComputedStyle(node).color)), light(back(node))];
          const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
          if (contrast < 4.5) found.add(`${node.className || node.tagName} ${contrast.toFixed(2)}`);
        }
        return [...found];""")
    assert faint == []


def test_labels_of_a_chart_do_not_overlap(page: Page, report: Path) -> None:
    page.show(PHONE)
    page.open(report)
    overlapping = page.run("""
        const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom - 1 && b.top < a.bottom - 1;
        return [...document.querySelectorAll('svg.plot')].flatMap((plot) => {
          const labels = [...plot.querySelectorAll('text')];
          const boxes = labels.map((node) => [node.textContent, node.getBoundingClientRect()]);
          const outer = plot.getBoundingClientRect();
          return boxes.flatMap(([text, box], i) => [
            ...(box.left < outer.left - 1 || box.right > outer.right + 1 ? [text + ' leaves its chart'] : []),
            ...boxes.slice(i + 1).filter(([, other]) => meet(box, other)).map(([other]) => text + ' on ' + other)]);
        })""")
    assert overlapping == []


def test_curves_are_read_by_pointer_and_keys(page: Page, report: Path) -> None:
    page.show(WIDE)
    page.open(report)
    page.run("document.querySelector('#curves svg').focus()")
    press = "arguments[0].dispatchEvent(new KeyboardEvent('keydown', {key: arguments[1], bubbles: true}))"
    page.run(f"(function () {{ {press} }})(document.querySelector('#curves svg'), 'ArrowRight')")
    assert page.text("#curves .place") == "step 1"
    page.run(f"(function () {{ {press} }})(document.querySelector('#curves svg'), 'ArrowRight')")
    assert page.text("#curves .place") == "step 2"
    data = json.loads(page.run("return document.getElementById('data').textContent"))
    value = data["training"]["series"]["reward/mean/reasoning"][1]
    assert page.text("#curves .legend b") == f"{value:.3f}"


def test_hostile_text_is_shown_and_does_nothing(page: Page, tmp_path: Path) -> None:
    harm = runs.HOSTILE[0]
    path = runs.write_run(tmp_path / "run <b>bold", num_steps=2)
    runs.write_rows(path / "transcripts" / "step_000002.jsonl", [runs.hostile_group(step=2)])
    metrics = {"step": 2, f"groups/dropped/{harm}": 3.0, f"referee/verdict/{harm}": 2.0, "groups/total": 9.0}
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics | {f"eval/{harm}": 1.0}) + "\n")
    (path / "environment.json").write_text(json.dumps({"commit": harm, "world_size": harm[:8]}))
    (path / "config.yaml").write_text(f'num_steps: 2\nmodel: {{path: "{harm}"}}\ndata: {{curriculum: 3}}\n')
    page.show(WIDE)
    page.open(write_report(path), "#group-2-0")
    page.settle()
    page.run("for (const node of document.querySelectorAll('details')) node.open = true")
    page.settle()
    shown = page.text(".detail")
    for part in (
        *runs.HOSTILE[:4],
        "U+202E RLO",
        "U+2066 LRI",
        "U+200B ZWSP",
        "U+001B ESC",
        "U+0000",
        "U+D800",
        "characters left out",
    ):
        assert part in shown
    assert page.run("return window.harmed === undefined")
    assert page.count("#main script, #top script, img, iframe") == 0
    assert "\u202e" not in page.run("return document.body.innerText")
    assert page.console() == []


def test_the_policy_refuses_other_scripts_and_markup(page: Page, report: Path) -> None:
    page.show(WIDE)
    page.open(report)
    page.run(
        "const node = document.createElement('script');"
        "try { node.textContent = 'window.harmed = 1' } catch { return }"
        "document.body.append(node)"
    )
    assert page.run("return window.harmed === undefined")
    assert page.run("try { document.body.innerHTML = '<b>'; return false } catch { return true }")
    page.console()


@pytest.mark.parametrize(
    "kind", ["step zero", "nothing yet", "no transcripts", "no evaluation", "torn", "transcripts alone"]
)
def test_unfinished_runs_have_a_right_page(page: Page, tmp_path: Path, kind: str) -> None:
    path = runs.write_run(tmp_path / "run", num_steps=5, planned=50)
    metrics, transcripts = path / "metrics.jsonl", sorted((path / "transcripts").iterdir())
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    if kind in ("step zero", "nothing yet", "no transcripts"):
        for file in transcripts:
            file.unlink()
    if kind == "step zero":
        runs.write_rows(metrics, rows[:1])
    if kind == "nothing yet":
        metrics.write_text("")
    if kind == "no transcripts":
        config = path / "config.yaml"
        config.write_text(config.read_text().replace("transcripts: true", "transcripts: false"))
    if kind == "no evaluation":
        runs.write_rows(metrics, [{k: v for k, v in row.items() if not k.startswith("eval/")} for row in rows])
    if kind == "torn":
        metrics.write_bytes(metrics.read_bytes()[:-20])
        transcripts[-1].write_bytes(transcripts[-1].read_bytes()[:-20])
    if kind == "transcripts alone":
        metrics.unlink()
    page.show(WIDE)
    page.open(write_report(path))
    assert page.console() == []
    everything = page.text("body")
    expected = {
        "step zero": ["No step yet", "measured once so far", "No transcript has been written yet"],
        "nothing yet": ["No step yet", "No held-out evaluation"],
        "no transcripts": ["5 of 50", "logging.transcripts is off"],
        "no evaluation": ["Unfinished", "No held-out evaluation was recorded"],
        "torn": ["Unfinished", "metrics.jsonl: the last line was cut off", "step_000005.jsonl: the last line"],
        "transcripts alone": ["metrics.jsonl is missing", "Unfinished"],
    }[kind]
    for part in expected:
        assert part in everything
    assert (page.count(".row") > 0) == (kind in ("no evaluation", "torn", "transcripts alone"))
