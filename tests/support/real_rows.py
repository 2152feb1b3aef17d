"""Where the published rows lie, and the example that is built of them."""

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
DATA = Path(os.environ.get("REAL_ROWS_DATA", ROOT.parent / "shared" / "data"))

needs_real_rows = pytest.mark.skipif(
    not (DATA / "gsm8k").is_dir() or not (DATA / "alpaca_eval").is_dir() or not (DATA / "evalbiasbench").is_dir(),
    reason=f"{DATA} with gsm8k/, alpaca_eval/ and evalbiasbench/ is absent; REAL_ROWS_DATA may name another folder",
)

Row = dict[str, Any]


def read_jsonl(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def load_build() -> ModuleType:
    """`examples/real_rows/build.py`; loaded by path, since examples are no package."""
    spec = importlib.util.spec_from_file_location("real_rows_build", ROOT / "examples" / "real_rows" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
