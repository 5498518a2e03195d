"""Which networks can leave tokens out. Loads no torch."""

from __future__ import annotations

from strategies.api import OptionError
from strategies.facts import ModelFacts


def refuse_other_pooling(strategy: str, option: str, student: ModelFacts, way_out: str) -> None:
    """Stop where the classifier would read tokens that were left out.

    Args:
        strategy, option: what leaves tokens out, for the message.
        student: the network.
        way_out: how to leave out none.

    Raises:
        OptionError: if it neither reads the class token nor the mean of the patches.
    """
    if student.family == "vit" and student.global_pool not in ("token", "avg"):
        raise OptionError(
            strategy,
            option,
            f"`{student.model}` pools with `{student.global_pool}`, which cannot tell tokens that were left out",
            way_out,
            "Write `global_pool: avg` or `global_pool: token` in the student's `args`.",
        )
