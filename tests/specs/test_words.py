"""Numbers with their nouns."""

from __future__ import annotations

import pytest

from specs.words import counted


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 stages"),
        (1, "1 stage"),
        (1.0, "1 stage"),
        (2, "2 stages"),
        (0.5, "0.5 stages"),
        (1234567, "1234567 stages"),
    ],
)
def test_counted(number: float, text: str) -> None:
    assert counted(number, "stage") == text
