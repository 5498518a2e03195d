"""What the comparison says of thresholds that training found by a target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from orchestrator.planning.plan import TrainStage
from orchestrator.reporting.compare import compare
from orchestrator.reporting.found import named
from orchestrator.reporting.report import html
from orchestrator.reporting.table import text
from strategies.dynamic.exit_target import Found


def searched(lab: Any, found: Callable[[str], Found | None]) -> Any:
    """The lab's experiment, trained and measured, where training found something in some stages."""
    for stage in lab.plan.walk():
        if isinstance(stage, TrainStage):
            what = found(stage.label)
            lab.train(stage, **({} if what is None else {"targets": {"early_exit": asdict(what)}}))
    for combination in lab.plan.combinations:
        lab.measure(combination)
    return lab


def macs(share: float, *, met: bool) -> Found:
    return Found("target_macs", 0.4, met, threshold=0.7, expected_macs=share, kept_accuracy=0.98)


def test_a_target_that_was_not_reached_is_said(lab_of: Callable[..., Any]) -> None:
    def found(label: str) -> Found | None:
        if "r2" in label:
            return macs(0.45 if "soft" in label else 0.512, met=False)
        return macs(0.39, met=True) if "r4" in label else None

    lab = searched(lab_of(seeds=(0,)), found)
    comparison = compare(lab.plan, lab.store)
    (missed,) = [note for note in comparison.notes if "was not reached" in note]
    for part in (
        "`early_exit.target_macs: 0.4`",
        "by 2 of 4 runs with it",
        "0.45 to 0.512 of the MACs",
        "an earlier exit",
    ):
        assert part in missed
    assert "(merging=r2,distill=none, merging=r2,distill=soft)" in missed
    # Whoever looks at the comparison sees it: in the terminal and in the report.
    for shown in (text(comparison), html(comparison, lab.plan, lab.experiment, lab.store)):
        assert "was not reached by 2 of 4 runs with it" in " ".join(shown.split())


def test_accuracies_on_the_images_of_the_search_say_so(lab_of: Callable[..., Any]) -> None:
    lab = searched(lab_of(seeds=(0, 1)), lambda label: macs(0.39, met=True) if "r4" in label else None)
    (note,) = [n for n in compare(lab.plan, lab.store).notes if "threshold" in n]
    assert note.startswith(
        "Accuracies of merging=r4,distill=none, merging=r4,distill=soft were taken on the validation"
    )
    assert "`early_exit.target_macs: 0.4`" in note


def test_a_teacher_that_found_its_threshold_does_not_matter(lab_of: Callable[..., Any]) -> None:
    lab = searched(lab_of(seeds=(0,)), lambda label: macs(0.5, met=False) if label == "teacher" else None)
    assert not [note for note in compare(lab.plan, lab.store).notes if "threshold" in note]


def test_long_lists_are_cut() -> None:
    assert named(["a", "b", "a"]) == "a, b"
    assert named("abcdefgh") == "a, b, c, d, e, f and 2 more"
