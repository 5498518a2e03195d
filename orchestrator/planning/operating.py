"""At which settings of its knobs each network is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.errors import PlanError
from orchestrator.planning.slices import Incompatible
from strategies.api import Strategy
from strategies.facts import Facts
from strategies.knobs import Sweeps, check_wanted, sweeps_of

Wanted = Mapping[str, Sequence[float]] | None
"""`measurement.operating_points` of a spec."""


class OperatingPoints:
    """Settings by network. Thousands of combinations have few different questions, and each is answered once."""

    def __init__(self) -> None:
        self._answers: dict[tuple[Any, ...], tuple[Sweeps, list[str]]] = {}
        self._checked: dict[int, Wanted] = {}

    def check(self, wanted: Wanted, path: object) -> None:
        """What is wrong for every network is wrong in the spec.

        Args:
            wanted: a slice of the spec; kept, so that its identity stays its own.
            path: the spec's file, for the message.

        Raises:
            PlanError: with all unknown knobs and values out of range.
        """
        if id(wanted) in self._checked:
            return
        problems = check_wanted(wanted or {})
        if problems:
            lines = "\n".join(f"  - {problem}" for problem in problems)
            raise PlanError(f"{path}: `measurement.operating_points`:\n{lines}")
        self._checked[id(wanted)] = wanted

    def of(self, strategies: Sequence[Strategy[Any]], facts: Facts, wanted: Wanted) -> Sweeps:
        """Settings of every knob of one network; empty if it has none.

        Raises:
            Incompatible: if the spec asks for settings that this network cannot have.
        """
        if not any(strategy.knob for strategy in strategies):
            return {}
        key = (tuple(id(strategy) for strategy in strategies), facts.student, facts.teachers, facts.shapes, id(wanted))
        if key not in self._answers:
            self._answers[key] = sweeps_of(strategies, facts, wanted)
        sweeps, impossible = self._answers[key]
        if impossible:
            raise Incompatible("`measurement.operating_points`: " + "; ".join(impossible))
        return sweeps
