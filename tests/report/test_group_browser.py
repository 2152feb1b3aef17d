"""The groups of the page in a real browser: they open, filter, sort and follow the keyboard."""

import json
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from tests.report.browser import Page

WIDE, PHONE = 1400, 390


@pytest.mark.parametrize("width", [PHONE, WIDE])
def test_a_click_opens_the_transcript_and_another_closes_it(page: Page, report: Path, width: int) -> None:
    page.show(width)
    page.open(report)
    assert page.count(".detail") == 0
    page.set_filter("task", "instruction")
    page.set_filter("sort", "top")
    page.run("document.querySelector('.row').click()")
    page.settle()
    assert page.count(".detail") == 1
    assert page.run("return document.querySelector('.detail').closest('.inline') !== null") == (width == PHONE)
    shown = page.text(".detail")
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
    assert page.count(".detail") == 0
    assert page.console() == []


def test_permutation_and_scores_belong_together(page: Page, report: Path) -> None:
    page.show(WIDE)
    page.open(report)
    page.set_filter("task", "instruction")
    page.set_filter("outcome", "t:")
    page.run("document.querySelector('.row').click()")
    page.settle()
    rows = page.run(
        "const rows = [...document.querySelectorAll('.order tbody tr')];"
        "return rows.map(row => [...row.children].map(cell => cell.innerText))"
    )
    rewards = dict(
        page.run(
            "const all = [...document.querySelectorAll('.detail .completion')];"
            "return all.filter(node => node.querySelector('.measure'))"
            ".map(node => [node.querySelector('.number').innerText, node.querySelector('.measure b').innerText])"
        )
    )
    assert [row[0] for row in rows] == [str(place) for place in range(1, 9)]
    assert {row[1]: row[2] for row in rows} == rewards
    verdict = page.text(".detail h4:nth-of-type(2) + .completion pre")
    assert verdict.split("{")[1].rstrip("}").split(", ") == [row[2] for row in rows]


def test_filters_and_sorting(page: Page, report: Path) -> None:
    data = json.loads(report.read_text().split('id="data">')[1].split("</script>")[0])
    groups = data["sample"]["groups"]
    page.show(WIDE)
    page.open(report)
    assert page.num_groups_found() == len(groups)
    page.set_filter("task", "preference")
    assert page.num_groups_found() == sum(group["task"] == "preference" for group in groups)
    page.set_filter("fromStep", "3")
    page.set_filter("toStep", "4")
    assert page.num_groups_found() == sum(group["task"] == "preference" and group["step"] in (3, 4) for group in groups)
    page.run("document.querySelector('.clear').click()")
    page.settle()
    assert page.num_groups_found() == len(groups)
    page.set_filter("outcome", "a:")
    assert page.num_groups_found() == sum(group["dropped"] is not None for group in groups)
    page.set_filter("outcome", "d:no_signal")
    assert page.num_groups_found() == sum(group["dropped"] == "no_signal" for group in groups)
    page.set_filter("outcome", "")
    page.set_filter("text", "KEEP WELL")
    assert page.num_groups_found() == sum(group["task"] == "instruction" for group in groups)
    page.set_filter("low", "8.5")
    high = [
        g for g in groups if g["task"] == "instruction" and any((c["reward"] or 0) >= 8.5 for c in g["completions"])
    ]
    assert page.num_groups_found() == len(high) > 0
    page.set_filter("text", "no such words")
    assert page.num_groups_found() == page.count(".row") == 0
    page.run("document.querySelector('.clear').click()")
    page.set_filter("sort", "spread")
    first = page.text(".where")
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
    assert "Self-scores rose" in page.text(".finding.bad")
    assert page.count(".row .chip.flag") > 0
    page.run("[...document.querySelectorAll('.link')].find(node => node.innerText === 'repeats itself').click()")
    page.settle()
    assert page.num_groups_found() > 0
    assert page.run(
        "return [...document.querySelectorAll('.row')].every(row => row.innerText.includes('repeats itself'))"
    )
    page.run("document.querySelector('.spot.marked').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    page.settle()
    assert "repeats itself" in page.text(".detail")


def test_arrow_keys_move_through_the_list(page: Page, report: Path) -> None:
    page.show(WIDE)
    page.open(report)
    page.run("document.querySelector('.row').focus()")
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    first = page.text(".detail h3")
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert page.text(".detail h3") != first
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert page.count(".detail") == 0


def test_a_link_opens_its_group(page: Page, report: Path) -> None:
    page.show(WIDE)
    page.open(report, "#group-7-3")
    page.settle()
    assert page.text(".detail h3") == "Step 7, group 3"
