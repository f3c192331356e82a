"""docs/architecture.md names functions in files: they are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = re.findall(r"^\|[^|]*\| (`fastmq/[^|]*) \| (`[^|]*) \|$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
STEPS = [step for files, functions in ROWS for step in zip(re.findall("`(.*?)`", files), re.findall("`(.*?)`", functions), strict=True)]


def test_the_table_is_read() -> None:
    assert len(STEPS) > 20


@pytest.mark.parametrize(("file", "function"), STEPS)
def test_step_is_where_the_document_says(file: str, function: str) -> None:
    definition = rf"^ *(cdef|cpdef|def)\b[^=(\n]*\b{function}\("
    assert re.search(definition, (ROOT / file).read_text(), re.MULTILINE), f"{file} has no function {function}"
