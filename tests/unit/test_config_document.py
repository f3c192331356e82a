"""docs/config.md is made from fastmq/config.py."""

from pathlib import Path

from fastmq.cli.config import markdown

DOCUMENT = Path(__file__).parents[2] / "docs" / "config.md"


def test_config_document_is_up_to_date() -> None:
    assert DOCUMENT.read_text() == markdown(), "run: .venv/bin/fastmq config --markdown > docs/config.md"
