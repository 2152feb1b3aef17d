"""What the documents say exists: links lead somewhere, commands and files that they name are there."""

import re
from pathlib import Path

import pytest

from megatron_urpo.cli import main

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    path
    for path in (ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/*.md"))
    if ".cache" not in path.parts
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_files_exist(document: Path) -> None:
    text = document.read_text()
    commands = set(re.findall(r"`?megatron-urpo ([a-z]+)\b", text))
    assert commands <= set(main.commands)
    files = set(
        re.findall(r"\b((?:scripts|tests|examples|megatron_urpo|constraints)/[\w./-]+\.(?:py|sh|yaml|txt))\b", text)
    )
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_readme_begins_with_the_two_commands() -> None:
    first = re.search(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert first is not None
    assert [line.split("#")[0].strip() for line in first[1].splitlines()] == [
        "bash scripts/quickstart.sh",
        "bash scripts/test.sh",
    ]
