"""A real Chromium without a window, driven over WebDriver. Nothing is installed here: see scripts/chromium.sh."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--force-device-scale-factor=1",
)  # fmt: skip


def programs() -> tuple[str, str] | None:
    """Paths of Chromium and of its driver, None where either is missing."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    return (chromium, driver) if chromium and driver else None


class Page:
    """One open page."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def show(self, width: int, dark: bool = False, height: int = 900) -> None:
        """The window's width in CSS pixels, and what the page is told about the person's taste."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def open(self, path: Path, fragment: str = "") -> None:
        self.driver.get("about:blank")
        self.driver.get(path.resolve().as_uri() + fragment)
        self.settle()

    def settle(self) -> None:
        """Waits for two drawn frames, after which observers have run, and the pause of the filter fields."""
        self.driver.execute_async_script(
            "const done = arguments[0]; setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), 200)"
        )

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def count(self, selector: str) -> int:
        return int(self.run("return document.querySelectorAll(arguments[0]).length", selector))

    def text(self, selector: str) -> str:
        """What a person sees of the first such element."""
        return str(self.run("return document.querySelector(arguments[0]).innerText", selector))

    def set_filter(self, name: str, value: str) -> None:
        """Types into a field above the list of groups."""
        self.run(
            "const field = document.querySelector(`.filters [name=${arguments[0]}]`); field.value = arguments[1];"
            "field.dispatchEvent(new Event('input', {bubbles: true}))",
            name,
            value,
        )
        self.settle()

    def num_groups_found(self) -> int:
        return int(self.text(".counted").split()[0])

    def console(self) -> list[str]:
        """Messages of warnings and errors since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def screenshot(self, path: Path, top: int = 0) -> None:
        """What the window shows when it is scrolled to `top`."""
        self.run("scrollTo({top: arguments[0], behavior: 'instant'})", top)
        self.settle()
        path.write_bytes(self.driver.get_screenshot_as_png())


@contextmanager
def open_browser(profile: Path) -> Iterator[Page]:
    """`profile` is a new empty folder for what the browser writes."""
    found = programs()
    assert found is not None
    chromium, driver = found
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    # Both paths are given, so that nothing is searched for or downloaded.
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield Page(browser)
    finally:
        browser.quit()
