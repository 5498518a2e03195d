"""The committed reference is what the docstrings say."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.describe_options import type_in_words
from orchestrator.reference import reference
from orchestrator.strategy_help import document

DOCUMENT = Path(__file__).parents[2] / "docs" / "spec-reference.md"


def test_the_document_is_up_to_date() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == reference(), "run `make docs`"
    assert DOCUMENT.with_name("strategies.md").read_text(encoding="utf-8") == document(), "run `make docs`"


def test_every_row_is_complete() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert all(cell.strip() for row in rows for cell in row.replace("\\|", "").strip("|").split("|"))


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1}, "whole number ≥ 1"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "number > 0 and ≤ 1"),
        ({"enum": ["a", "b"]}, "one of `a`, `b`"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text, or `null`"),
        ({"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}, "list of 2: number"),
        ({"$ref": "#/$defs/ModelSpec"}, "[ModelSpec]"),
        ({"type": "object", "additionalProperties": {"type": "boolean"}}, "mapping of name to `true` or `false`"),
        ({}, "any value"),
    ],
)
def test_types_in_words(schema: dict[str, object], words: str) -> None:
    assert type_in_words(schema) == words
