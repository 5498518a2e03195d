"""Logits can only be compared between networks with the same classes. Loads no torch."""

from __future__ import annotations

from strategies.api import OptionError
from strategies.facts import Facts


def check_same_classes(strategy: str, facts: Facts) -> None:
    """Refuse a teacher whose logits mean other classes.

    Args:
        strategy: name of the strategy that compares logits.
        facts: a stage without teacher passes; that the teacher is missing is the claims' affair.

    Raises:
        OptionError: if student and teacher differ in their number of classes.
    """
    if facts.teacher is None or facts.teacher.num_classes == facts.student.num_classes:
        return
    raise OptionError(
        strategy,
        "teacher",
        f"the teacher `{facts.teacher.model}` tells {facts.teacher.num_classes} classes apart, the student "
        f"{facts.student.num_classes}",
        f"a teacher with {facts.student.num_classes} classes",
        "Train the teacher on the same data in an earlier stage (`teacher: {stage: ...}`), or use `feature`, which "
        "compares no classes.",
    )
