"""Numbers with their nouns, for messages."""

from __future__ import annotations


def counted(number: float, noun: str) -> str:
    """`1 stage`, `2 stages`, `0.5 GPUs`.

    Args:
        noun: in the singular; its plural ends in `s`.
    """
    digits = f"{number:g}" if isinstance(number, float) else str(number)
    return f"{digits} {noun}{'' if number == 1 else 's'}"
