"""The register of faults goes with the code: each can be put in, and what shall catch it is there."""

import pytest

from scripts.mutation_check import FAULTS, ROOT, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_has_its_place(fault: Fault) -> None:
    assert (ROOT / "megatron_urpo" / fault.file).read_text().count(fault.before) == 1
    assert (ROOT / "tests" / fault.tests).exists()


def test_the_page_lists_them_all() -> None:
    lines = (ROOT / "docs" / "measurements" / "mutations.md").read_text().splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines if " | `" in line] == [f.name for f in FAULTS]
