from __future__ import annotations

import pytest

from strategies.api import OptionError
from strategies.blocks import checked, quarters


def test_quarters_are_where_the_papers_act() -> None:
    assert quarters(12) == (3, 6, 9)
    assert quarters(24) == (6, 12, 18)
    assert quarters(4) == (1, 2, 3)
    assert [quarters(depth) for depth in (1, 2, 3)] == [(0,), (0, 1), (0, 1, 2)]


def test_listed_blocks_keep_their_order() -> None:
    assert checked("some", "blocks", [3, 0], 4) == (3, 0)
    assert checked("some", "blocks", [], 4) == ()


@pytest.mark.parametrize(("blocks", "problem"), [([0, 4], "no block 4"), ([-1], "no block -1"), ([1, 1], "twice")])
def test_blocks_that_do_not_exist_or_repeat_are_refused(blocks: list[int], problem: str) -> None:
    with pytest.raises(OptionError, match=rf"some\.blocks: .*{problem}.*different blocks from 0 to 3\. Write `null`"):
        checked("some", "blocks", blocks, 4)
