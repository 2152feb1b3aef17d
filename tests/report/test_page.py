"""The page in a real browser: it draws without a complaint, its groups open and filter, and hostile text stays text."""

import json
from pathlib import Path

import pytest

from megatron_urpo.reporting.report import write_report
from tests.report import runs
from tests.report.browser import Page

WIDE, PHONE = 1400, 390


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(runs.write_run(tmp_path_factory.mktemp("report") / "run"))


def count(page: Page, selector: str) -> int:
    return int(page.run("return document.querySelectorAll(arguments[0]).length", selector))


def text_of(page: Page, selector: str) -> str:
    return str(page.run("return document.querySelector(arguments[0]).innerText", selector))


def set_field(page: Page, name: str, value: str) -> None:
    page.run(
        "const field = document.querySelector(`.filters [name=${arguments[0]}]`); field.value = arguments[1];"
        "field.dispatchEvent(new Event('input', {bubbles: true}))",
        name,
        value,
    )
    page.settle()


def num_found(page: Page) -> int:
    return int(text_of(page, ".counted").split()[0])


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, WIDE])
def test_draws_at_every_width_in_both_colours(page: Page, report: Path, tmp_path: Path, width: int, dark: bool) -> None:
    page.show(width, dark)
    page.open(report)
    assert page.console() == []
    assert page.run("return document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    assert count(page, "svg.plot") > 15
    assert count(page, "svg.plot path.curve") > 15
    assert page.run("return [...document.querySelectorAll('svg.plot')].every(plot => plot.childElementCount > 0)")
    background = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(18, 20, 23)") == dark
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_labels_of_a_chart_do_not_overlap(page: Page, report: Path) -> None:
    page.show(PHONE)
    page.open(report)
    overlapping = page.run("""
        const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom - 1 && b.top < a.bottom - 1;
        return [...document.querySelectorAll('svg.plot')].flatMap((plot) => {
          const boxes = [...plot.querySelectorAll('text')].map((node) => [node.textContent, node.getBoundingClientRect()]);
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
    assert text_of(page, "#curves .place") == "step 1"
    page.run(f"(function () {{ {press} }})(document.querySelector('#curves svg'), 'ArrowRight')")
    assert text_of(page, "#curves .place") == "step 2"
    data = json.loads(page.run("return document.getElementById('data').textContent"))
    value = data["training"]["series"]["reward/mean/reasoning"][1]
    assert text_of(page, "#curves .legend b") == f"{value:.3f}"


@pytest.mark.parametrize("width", [PHONE, WIDE])
def test_a_click_opens_the_transcript_and_another_closes_it(page: Page, report: Path, width: int) -> None:
    page.show(width)
    page.open(report)
    assert count(page, ".detail") == 0
    set_field(page, "task", "instruction")
    set_field(page, "sort", "top")
    page.run("document.querySelector('.row').click()")
    page.settle()
    assert count(page, ".detail") == 1
    assert page.run("return document.querySelector('.detail').closest('.inline') !== null") == (width == PHONE)
    shown = text_of(page, ".detail")
    for part in (
        "Name",
        "fruits that keep well in winter",
        "reward 9",
        "advantage",
        "Order in the scoring prompt",
        "\\boxed{",
    ):
        assert part in shown
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    assert page.run("return location.hash").startswith("#group-")
    page.run("document.querySelector('.detail .close').click()")
    assert count(page, ".detail") == 0
    assert page.console() == []


def test_permutation_and_scores_belong_together(page: Page, report: Path) -> None:
    page.show(WIDE)
    page.open(report)
    set_field(page, "task", "instruction")
    set_field(page, "outcome", "t:")
    page.run("document.querySelector('.row').click()")
    page.settle()
    rows = page.run(
        "return [...document.querySelectorAll('.order tbody tr')].map(row => [...row.children].map(cell => cell.innerText))"
    )
    rewards = dict(
        page.run(
            "return [...document.querySelectorAll('.detail .completion')].filter(node => node.querySelector('.measure'))"
            ".map(node => [node.querySelector('.number').innerText, node.querySelector('.measure b').innerText])"
        )
    )
    assert [row[0] for row in rows] == [str(place) for place in range(1, 9)]
    assert {row[1]: row[2] for row in rows} == rewards
    verdict = text_of(page, ".detail h4:nth-of-type(2) + .completion pre")
    assert verdict.split("{")[1].rstrip("}").split(", ") == [row[2] for row in rows]


def test_filters_and_sorting(page: Page, report: Path) -> None:
    data = json.loads(report.read_text().split('id="data">')[1].split("</script>")[0])
    groups = data["sample"]["groups"]
    page.show(WIDE)
    page.open(report)
    assert num_found(page) == len(groups)
    set_field(page, "task", "preference")
    assert num_found(page) == sum(group["task"] == "preference" for group in groups)
    set_field(page, "fromStep", "3")
    set_field(page, "toStep", "4")
    assert num_found(page) == sum(group["task"] == "preference" and group["step"] in (3, 4) for group in groups)
    page.run("document.querySelector('.clear').click()")
    page.settle()
    assert num_found(page) == len(groups)
    set_field(page, "outcome", "a:")
    assert num_found(page) == sum(group["dropped"] is not None for group in groups)
    set_field(page, "outcome", "d:no_signal")
    assert num_found(page) == sum(group["dropped"] == "no_signal" for group in groups)
    set_field(page, "outcome", "")
    set_field(page, "text", "KEEP WELL")
    assert num_found(page) == sum(group["task"] == "instruction" for group in groups)
    set_field(page, "low", "8.5")
    high = [
        g for g in groups if g["task"] == "instruction" and any((c["reward"] or 0) >= 8.5 for c in g["completions"])
    ]
    assert num_found(page) == len(high) > 0
    set_field(page, "text", "no such words")
    assert num_found(page) == count(page, ".row") == 0
    page.run("document.querySelector('.clear').click()")
    set_field(page, "sort", "spread")
    first = text_of(page, ".where")
    widest = max(
        max(r) - min(r) for g in groups if (r := [c["reward"] for c in g["completions"] if c["reward"] is not None])
    )
    step, index = (int(part.replace("step", "")) for part in first.split("\u00b7"))
    rewards = [c["reward"] for g in groups if (g["step"], g["group"]) == (step, index) for c in g["completions"]]
    assert max(rewards) - min(rewards) == widest
    assert page.console() == []


def test_suspicious_groups_come_first_and_signs_lead_to_them(page: Page, report: Path) -> None:
    page.show(WIDE)
    page.open(report)
    assert "Self-scores rose" in text_of(page, ".finding.bad")
    assert count(page, ".row .chip.flag") > 0
    page.run("[...document.querySelectorAll('.link')].find(node => node.innerText === 'repeats itself').click()")
    page.settle()
    assert 0 < num_found(page)
    assert page.run(
        "return [...document.querySelectorAll('.row')].every(row => row.innerText.includes('repeats itself'))"
    )
    page.run("document.querySelector('.spot.marked').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    page.settle()
    assert "repeats itself" in text_of(page, ".detail")


def test_arrow_keys_move_through_the_list(page: Page, report: Path) -> None:
    page.show(WIDE)
    page.open(report)
    from selenium.webdriver.common.keys import Keys

    page.run("document.querySelector('.row').focus()")
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    first = text_of(page, ".detail h3")
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert text_of(page, ".detail h3") != first
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert count(page, ".detail") == 0


def test_a_link_opens_its_group(page: Page, report: Path) -> None:
    page.show(WIDE)
    page.open(report, "#group-7-3")
    page.settle()
    assert text_of(page, ".detail h3") == "Step 7, group 3"


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
    shown = text_of(page, ".detail")
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
    assert count(page, "#main script, #top script, img, iframe") == 0
    assert "\u202e" not in page.run("return document.body.innerText")
    assert page.console() == []


def test_the_policy_refuses_other_scripts_and_markup(page: Page, report: Path) -> None:
    page.show(WIDE)
    page.open(report)
    page.run("const node = document.createElement('script'); try { node.textContent = 'window.harmed = 1' } catch { return }"
             "document.body.append(node)")  # fmt: skip
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
    everything = text_of(page, "body")
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
    assert (count(page, ".row") > 0) == (kind in ("no evaluation", "torn", "transcripts alone"))
