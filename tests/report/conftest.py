"""One browser for all tests of this folder; where there is none they are skipped by name."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_urpo.reporting.report import write_report
from tests.report import runs
from tests.report.browser import Page, open_browser, programs


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if programs() is None:
        pytest.skip("needs chromium and chromedriver on the PATH; on Debian: apt-get install chromium chromium-driver")
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run that went wrong in the usual way."""
    return write_report(runs.write_run(tmp_path_factory.mktemp("report") / "run"))
