"""Which blocks of a network a strategy acts at. Loads no torch: claims decide before any network exists."""

from __future__ import annotations

from collections.abc import Sequence

from strategies.api import OptionError


def quarters(depth: int) -> tuple[int, ...]:
    """Blocks at a quarter, half and three quarters of a network, ascending: [3, 6, 9] of 12, where most papers act.

    Networks of fewer than four blocks have fewer of them, each once.
    """
    return tuple(sorted({depth * quarter // 4 for quarter in (1, 2, 3)}))


def checked(
    strategy: str, option: str, blocks: Sequence[int], depth: int, way_out: str = "Write `null` for the default."
) -> tuple[int, ...]:
    """The blocks as they were listed, if a network of this depth has them, each listed once.

    Args:
        strategy, option: where they were written, for the message.
        blocks: counted from 0.
        depth: blocks of the network.
        way_out: what to write instead.

    Raises:
        OptionError: if there is no such block, or one is listed twice.
    """
    beyond = [b for b in blocks if not 0 <= b < depth]
    if beyond or len(set(blocks)) != len(blocks):
        problem = f"there is no block {beyond[0]}" if beyond else "a block is listed twice"
        raise OptionError(strategy, option, problem, f"different blocks from 0 to {depth - 1}", way_out)
    return tuple(blocks)
