"""The search while it runs: proposes trials, judges them, and tells the driver what to run and what to give up."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import count

from cluster.storage import ArtifactStore
from orchestrator.errors import PlanError, StoreError
from orchestrator.execution.events import Event, StageFailed, StageFinished, StageFound, StageSkipped
from orchestrator.execution.steering import Change
from orchestrator.planning.feasible import cannot_start
from orchestrator.planning.make import make_plan, tried_out
from orchestrator.planning.plan import Combination, Plan
from orchestrator.planning.status import finished, to_run
from orchestrator.search.dominance import Standing, domination
from orchestrator.search.halving import Halving, evidence
from orchestrator.search.ledger import Ledger, Values, Verdict
from orchestrator.search.matrix import Trial, dimensions, search_digest, searched
from orchestrator.search.measured import Measured, Missing
from orchestrator.search.searcher import Searcher, make_searcher
from orchestrator.training.interface import Progress
from specs.load import SpecDocument


class SearchControl:
    """Steers the run of one search. Everything it decides is in the ledger before anybody acts on it.

    Args:
        document: a spec with a search.
        store: where ledger and stages are; must be writable.

    Raises:
        PlanError: if no trial can be planned.
        StoreError: if the ledger is damaged, or does not fit what the searcher proposes.
    """

    def __init__(self, document: SpecDocument, store: ArtifactStore) -> None:
        search = document.experiment.search
        assert search is not None, "the spec has a search"
        self._document, self._store, self._search = document, store, search
        self._digest = search_digest(document)
        self._ledger = Ledger(store, self._digest)
        self._measured = Measured(store, search.objectives)
        self._searcher: Searcher | None = None
        self._walked = self._told = 0  # trials that the searcher proposed, and was told of, in this process
        self._failed: dict[str, str] = {}
        """Stage that failed, or was skipped, in this run → reason."""
        self._halving: Halving | None = None
        self._rungs = self._ledger.rungs()
        self._read()
        self._advance()

    @property
    def plan(self) -> Plan:
        """The plan of all trials so far."""
        return self._plan

    @property
    def exhausted(self) -> bool:
        """Whether every trial is proposed and judged."""
        assert self._plan.search is not None
        return len(self._verdicts) >= self._plan.search.num_trials

    @property
    def side_by_side(self) -> int:
        """Trials that may be under way at a time, as far as the search is concerned."""
        return self._search.concurrent if self._search.algorithm == "optuna" else max(1, len(self._runs))

    def wanted(self) -> frozenset[str]:
        """Stages that are to run now: of the trials so far, less what waits for the seed before it."""
        released = [c for runs in self._runs.values() for c in self._released(runs)]
        plan = self._plan.model_copy(update={"combinations": tuple(released)})
        return to_run(plan, finished(plan, self._store))

    def obstacles(self) -> dict[str, str]:
        """Why no trial at all could start with these `resources`, by stage; empty if one could.

        Of those that are proposed later, only some are known: the ends of all ranges are tried out.
        """
        resources = self._document.experiment.resources
        if not (stuck := cannot_start(self._plan, self.wanted(), resources)):
            return {}
        tried = tried_out(self._document)
        stuck |= cannot_start(tried, tried.stages, resources)
        known = (*self._plan.combinations, *tried.combinations)
        return stuck if all(stuck.keys() & set(combination.stages) for combination in known) else {}

    def step(self, events: Sequence[Event]) -> Change | None:
        """Take in what happened; `None` if nothing follows from it."""
        before, num_judged, news = self._plan, len(self._verdicts), False
        for event in events:
            if isinstance(event, StageFailed):
                self._failed[event.stage] = event.reason
            elif isinstance(event, StageSkipped):
                self._failed[event.stage] = f"a stage that it needs failed: {self._failed.get(event.because_of, '')}"
            elif isinstance(event, Progress) and event.kind == "epoch":
                self._after_epoch(event)
            news = news or isinstance(event, StageFailed | StageSkipped | StageFinished | StageFound)
        if news or self._plan is not before:
            self._advance()
        if self._plan is before and len(self._verdicts) == num_judged and not (news and self._search.stop_dominated):
            return None
        return Change(self._plan, self.wanted(), self._given_up())

    def _given_up(self) -> dict[str, str]:
        """Unfinished stages that only stopped trials have → on what evidence."""
        plan, done = self._plan, finished(self._plan, self._store)
        needed = {d for c in plan.combinations if c.name not in plan.stopped for d in c.stages}
        stopped = (c for c in plan.combinations if c.name in plan.stopped)
        return {d: plan.stopped[c.name] for c in stopped for d in c.stages if d not in needed and d not in done}

    def _released(self, runs: Sequence[Combination]) -> Sequence[Combination]:
        """The seeds of a trial that may run: all of them, or one after another where the first may show enough."""
        if not self._search.stop_dominated:
            return runs
        measured = sum(self._store.committed(f"stages/{c.measured_by}") for c in runs)
        return runs[: measured + 1]

    def _read(self) -> None:
        """Plan, names and verdicts anew, from the ledger."""
        self._plan = make_plan(self._document, self._store)
        found = searched(self._document, self._ledger)
        self._trials: dict[int, Trial] = {trial.number: trial for trial in found.trials}
        self._names = found.names()
        self._verdicts = {n: verdict for n, verdict in found.verdicts.items() if n in self._names}
        self._runs: dict[str, list[Combination]] = {}
        for combination in self._plan.combinations:
            self._runs.setdefault(combination.name, []).append(combination)

    def _advance(self) -> None:
        """Judge and propose until nothing follows any more.

        Raises:
            PlanError: if the search is at its end without one trial that could be planned.
        """
        while self._judge() or self._propose():
            self._read()
        if self.exhausted and not self._runs:
            reasons = "\n".join(f"  - {d.name}: {'; '.join(d.reasons)}" for d in self._plan.dropped[:10])
            raise PlanError(f"{self._document.path}: no trial of the search can be planned:\n{reasons}")

    # Proposing.

    def _propose(self) -> bool:
        """Note the trials that are due; whether there was one."""
        num_trials, sequential = self._search.trials, self._search.algorithm == "optuna"
        if num_trials is None:  # a grid
            return False
        news = False
        number = next(n for n in count() if n not in self._trials)
        while number < num_trials and not (sequential and self._awaits(number)):
            values = self._proposed(number)
            self._ledger.propose(number, values)
            self._trials[number] = Trial(number, values)
            number, news = number + 1, True
        return news

    def _awaits(self, number: int) -> bool:
        """Whether a trial that this one is proposed from is still open."""
        return any(n not in self._verdicts for n in range(number - self._search.concurrent + 1))

    def _proposed(self, number: int) -> Values:
        """What the searcher proposes as this trial. One that was made anew walks the same way up to there."""
        if self._searcher is None:
            self._searcher = make_searcher(self._search, dimensions(self._document.experiment))
        values: Values = {}
        while self._walked <= number:
            for n in range(self._told, self._walked - self._search.concurrent + 1):
                if self._search.algorithm == "optuna":
                    self._searcher.tell(n, self._verdicts[n])
                self._told = n + 1
            values = self._searcher.propose(self._walked)
            known = self._trials.get(self._walked)
            if known is not None and known.values != values:
                raise StoreError(
                    f"trial {self._walked} of the search was {known.values}, but from what its ledger says the "
                    f"searcher now proposes {values}. Delete `searches/{self._digest}` in the store; the search then "
                    "begins anew, and stages that are finished are not run again"
                )
            self._walked += 1
        return values

    # Judging.

    def _judge(self) -> bool:
        """Note the verdicts that can be told now; whether there was one."""
        dropped = {d.name: "; ".join(d.reasons) for d in self._plan.dropped}
        known = {self._names[n]: verdict for n, verdict in self._verdicts.items()}
        news = False
        for number, name in self._names.items():
            if number in self._verdicts:
                continue
            verdict = known.get(name)  # an equal trial, which is the same combination
            if verdict is None and name in dropped:
                verdict = Verdict(outcome="impossible", evidence=dropped[name])
            verdict = verdict or self._outcome(number, self._runs[name])
            if verdict is not None:
                self._ledger.judge(number, verdict)
                known[name] = verdict
                news = True
        return news

    def _outcome(self, number: int, runs: Sequence[Combination]) -> Verdict | None:
        """Verdict on a trial that is planned; `None` while it is open."""
        curve = self._curve(number)
        try:
            standing = self._standing(runs)
        except Missing as error:
            return Verdict(outcome="failed", evidence=str(error), curve=curve)
        if standing is not None and standing.num_seeds == len(runs):
            means = {name: statistics.fmean(values) for name, values in standing.values.items()}
            return Verdict(outcome="finished", objectives=means, curve=curve)
        failed = [self._failed[d] for c in runs for d in c.stages if d in self._failed]
        if failed:
            return Verdict(outcome="failed", evidence=failed[0], curve=curve)
        if self._search.stop_dominated and standing is not None:
            found = domination(standing, self._others(runs[0].name), self._search.objectives)
            if found is not None:
                return Verdict(outcome="stopped", evidence=found.evidence, rule="dominated", by=found.by)
        return None

    def _others(self, name: str) -> list[Standing]:
        """What is measured of all other trials."""
        found = []
        for other, runs in self._runs.items():
            try:
                standing = self._standing(runs) if other != name else None
            except Missing:
                continue
            if standing is not None:
                found.append(standing)
        return found

    def _standing(self, runs: Sequence[Combination]) -> Standing | None:
        """What is measured of a trial; `None` before its first seed is."""
        rows = [row for c in runs if (row := self._measured.of(self._plan, c)) is not None]
        names = [objective.metric for objective in self._search.objectives]
        return Standing(runs[0].name, {name: [row[name] for row in rows] for name in names}) if rows else None

    def _curve(self, number: int) -> dict[int, float]:
        return {rung.epoch: rung.top1 for rung in self._rungs if rung.trial == number}

    def _after_epoch(self, event: Progress) -> None:
        """ASHA on the last training stage of a trial."""
        top1 = event.values.get("val_top1")
        number = next((n for n, name in self._names.items() if self._trains(name, event.stage)), None)
        if self._search.scheduler is None or top1 is None or number is None or number in self._verdicts:
            return
        if any((rung.trial, rung.epoch) == (number, event.epoch) for rung in self._rungs):
            return  # before a kill
        asha, epochs = self._search.scheduler.asha, self._plan.stages[event.stage].epochs
        if self._halving is None:
            self._halving = Halving(asha, epochs)
            for rung in self._rungs:
                self._halving.judge(rung.trial, rung.epoch, rung.top1)
        judged = self._halving.judge(number, event.epoch, top1)
        if judged is None:
            return
        self._ledger.pass_rung(judged)
        self._rungs.append(judged)
        if not judged.goes_on and not self._store.committed(f"stages/{event.stage}"):
            why, curve = evidence(judged, asha, epochs), self._curve(number)
            self._ledger.judge(number, Verdict(outcome="stopped", evidence=why, rule="asha", curve=curve))
            self._read()

    def _trains(self, name: str, stage: str) -> bool:
        """Whether a stage is the last training of this combination."""
        return any(combination.result == stage for combination in self._runs.get(name, ()))
