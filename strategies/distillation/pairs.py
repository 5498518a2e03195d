"""Which blocks of student and teacher are compared. Loads no torch: claims decide before any network exists."""

from __future__ import annotations

from collections.abc import Sequence

from strategies.facts import Facts

Pairs = tuple[tuple[int, int], ...]
"""(student block, teacher block), both from 0; hierarchical networks count feature stages."""


def last_pair(facts: Facts) -> Pairs:
    """The last block of each network."""
    return ((facts.student.depth - 1, _teacher_depth(facts) - 1),) if facts.student.depth else ((0, 0),)


def outer_thirds(facts: Facts) -> Pairs:
    """The first third of the blocks of each network, and the last, in order; of two networks of 12 blocks 0 to 3 and 8
    to 11. The shallower one decides how many these are, at least one of each."""
    ours, theirs = max(facts.student.depth, 1), _teacher_depth(facts)
    num = max(1, min(ours, theirs) // 3)
    first = [(i, i) for i in range(num)]
    last = [(ours - num + i, theirs - num + i) for i in range(num)]
    return tuple(dict.fromkeys([*first, *last]))


def refuse_twice(option: str, pairs: Sequence[tuple[int, int]] | None) -> None:
    """Raise `ValueError` if a pair is listed twice."""
    if pairs is not None and len(set(pairs)) != len(pairs):
        raise ValueError(f"`{option}` holds a pair twice; write each pair once")


def _teacher_depth(facts: Facts) -> int:
    return max(facts.teacher.depth, 1) if facts.teacher else 1
