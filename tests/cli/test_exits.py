"""How commands end that something happened to."""

from __future__ import annotations

import pytest

from orchestrator.errors import StoreError
from orchestrator.exits import INTERNAL_ERROR, ending


def test_a_full_disk_is_no_mistake_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    def fills_up() -> None:
        with open("/dev/full", "wb", buffering=0) as disk:
            disk.write(b"x")

    assert ending(fills_up) == StoreError.exit_code
    said = capsys.readouterr().err
    assert "error: no room is left: " in said
    assert "the same command goes on" in said


def test_other_errors_of_the_system_are_ours_to_explain(capsys: pytest.CaptureFixture[str]) -> None:
    def reads_what_is_not_there() -> None:
        open("/no/such/file").close()

    assert ending(reads_what_is_not_there) == INTERNAL_ERROR
    assert "internal error: FileNotFoundError" in capsys.readouterr().err
