"""Columns of a prompt store in Arrow and Parquet; `rows.py` says what a row means."""

import pyarrow

_TEXTS = pyarrow.list_(pyarrow.string())
_MESSAGES = pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))
_TESTS = pyarrow.struct(
    [
        *((name, pyarrow.string()) for name in ("kind", "import_prefix", "test_code", "entry_point", "fn_name")),
        *((name, _TEXTS) for name in ("inputs", "outputs")),
    ]
)
ROW_SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.string()),
        ("task", pyarrow.string()),
        ("messages", _MESSAGES),
        ("source", pyarrow.string()),
        ("answers", _TEXTS),
        ("tests", _TESTS),
        ("responses", _TEXTS),
        ("scores", pyarrow.list_(pyarrow.float64())),
    ]
)
PACKED_SCHEMA = ROW_SCHEMA.append(pyarrow.field("num_tokens", pyarrow.int32()))
"""`num_tokens`: of the prompt as the model sees it, the whole scoring prompt for preference."""
