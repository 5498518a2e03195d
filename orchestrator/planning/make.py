"""A validated spec to a plan: every stage of every combination once, named by what determines its output."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.storage import ArtifactStore
from orchestrator.errors import PlanError
from orchestrator.measurement.baseline import at_input_of
from orchestrator.planning.environment import numerics, resolved, training_device
from orchestrator.planning.expand import Cell, cells, excluded
from orchestrator.planning.measure_stage import measure_stage
from orchestrator.planning.operating import OperatingPoints
from orchestrator.planning.plan import Combination, Dropped, MeasureStage, Plan, SearchPlan, Stage, TrainStage
from orchestrator.planning.slices import Choice, Incompatible, Slices
from orchestrator.planning.train_stages import TrainStages
from orchestrator.search.ledger import Ledger
from orchestrator.search.matrix import Searched, as_matrix, dimensions, search_digest, searched, shown
from orchestrator.storage import open_store
from specs.data import DataSpec
from specs.labels import labels
from specs.load import SpecDocument
from specs.measurement import MeasurementSpec
from specs.model import ModelSpec
from specs.words import counted
from strategies.catalog import UnknownModelError, facts_of
from strategies.facts import ModelFacts

SHOWN_CONFLICTS = 20


def make_plan(document: SpecDocument, store: ArtifactStore | None = None) -> Plan:
    """Expand the matrix, or the trials of the search so far, and merge equal stages.

    Args:
        document: the spec.
        store: where the search keeps its ledger; `None` = the spec's store. Without a search nothing is read.

    Raises:
        PlanError: with every conflict (unless the matrix drops them) and everything else that cannot be planned.
        DataError: if the images are missing.
        StoreError: if the ledger of the search is damaged.
    """
    if document.experiment.search is None:
        return _Planner(document).plan(cells(document.experiment.matrix))
    if store is None:
        store = open_store(document.experiment.storage)
    return _searched_plan(document, searched(document, Ledger(store, search_digest(document))))


def _searched_plan(document: SpecDocument, found: Searched) -> Plan:
    """The plan of the trials so far. Trials that cannot be planned are left out: nobody chose them."""
    search, planner = document.experiment.search, _Planner(found.document)
    assert search is not None, "only a search has trials"
    grid = search.algorithm == "grid"
    plan = planner.plan(found.cells(), proposed=True) if found.trials else planner.empty()
    if grid:
        planner.check_fatal()
    if grid and not plan.combinations:
        raise PlanError(f"{document.path}: {_summary({d.name: d.reasons for d in plan.dropped})}\nNo trial is left.")
    names, judged = found.names(), {n: v for n, v in found.verdicts.items() if n < len(found.trials)}
    progress = SearchPlan(
        digest=search_digest(document),
        algorithm=search.algorithm,
        space={name: shown(dimension) for name, dimension in dimensions(document.experiment).items()},
        num_trials=len(found.trials) if grid else search.trials or 0,
        proposed=len(found.trials),
        judged=len(judged),
    )
    stopped = {names[n]: verdict.evidence for n, verdict in judged.items() if verdict.outcome == "stopped"}
    return plan.model_copy(update={"search": progress, "stopped": stopped})


def tried_out(document: SpecDocument) -> Plan:
    """Some combinations of a search's space, whether they are proposed or not: the first value of every dimension, and
    every other single value or end of a range with the first ones of the others."""
    return _Planner(as_matrix(document, ())).tried_out()


class _Planner:
    """The work of one `make_plan`."""

    def __init__(self, document: SpecDocument) -> None:
        self.document, self.experiment = document, document.experiment
        self.slices = Slices(document)
        self.environment = numerics(training_device(self.experiment.resources))
        self.training = TrainStages(document, self.slices, self.environment)
        self.conditions: dict[int, MeasurementSpec] = {}
        self.measured: dict[tuple[str, int], MeasureStage] = {}
        self.operating_points = OperatingPoints()
        self.mistakes: dict[str, None] = {}
        """In the spec, seen in combinations that were proposed (an ordered set)."""

    def empty(self) -> Plan:
        """A plan without combinations yet. Some are tried out, so that it is found now if none can be planned."""
        plan = self.tried_out()
        self.check_fatal()
        if not plan.combinations:
            raise PlanError(
                f"{self.document.path}: {_summary({d.name: d.reasons for d in plan.dropped})}\n"
                "No trial of the search can be planned. Mend the above, or change `search.space` or `matrix.axes`."
            )
        return Plan.model_construct(experiment=self.experiment.name, stages={}, combinations=(), dropped=())

    def tried_out(self) -> Plan:
        """The first value of every dimension, and every other value with the first ones of the others."""
        known = {name: labels(axis) for name, axis in self.experiment.matrix.axes.items()}
        choices: dict[Choice, None] = {}
        for i, values in enumerate(known.values()):
            choices |= {tuple(j if k == i else 0 for k in range(len(known))): None for j in range(len(values))}
        seeded = {name for name, axis in self.experiment.matrix.axes.items() if axis.seeds is not None}
        tried = []
        for choice in choices:
            named = {a: values[j] for (a, values), j in zip(known.items(), choice, strict=True) if a not in seeded}
            tried.append(Cell(choice, named))
        return self.plan(tried, proposed=True)

    def plan(self, chosen: Iterable[Cell], *, proposed: bool = False) -> Plan:
        """Combinations, their stages parents first; `proposed` ones that cannot be planned are left out."""
        stages: dict[str, Stage] = {}
        combinations: list[Combination] = []
        refused: dict[str, tuple[str, ...]] = {}
        last = len(self.experiment.stages) - 1
        for cell in chosen:
            if proposed and excluded(self.experiment.matrix, cell.labels):
                refused[cell.name] = ("`matrix.exclude` leaves it out.",)
                continue
            node = self.training.node(last, cell.choice)
            if not isinstance(node.stage, TrainStage) or node.network is None:
                refused[cell.name] = node.reasons
                continue
            try:
                measurement = self._measure(node.stage, node.network.facts, cell)
            except Incompatible as error:
                refused[cell.name] = (f"measurement: {error}",)
                continue
            except PlanError as error:
                if not proposed:
                    raise
                refused[cell.name] = (error.message,)
                self.mistakes[error.message] = None
                continue
            order = self.training.ancestors(node.stage.digest)
            for digest in order:
                stages.setdefault(digest, self.training.stage(digest))
            stages.setdefault(measurement.digest, measurement)
            combinations.append(
                Combination.model_construct(
                    name=cell.name,
                    labels=cell.labels,
                    seed=self.slices.get("seed", cell.choice),
                    stages=(*order, measurement.digest),
                )
            )
        repeated = _repeated(combinations)
        if proposed and repeated:
            refused |= {name: (_same_runs(name, seeds),) for name, seeds in repeated.items()}
            self.mistakes |= {f"{self.document.path}: {_same_runs(n, seeds)}": None for n, seeds in repeated.items()}
            combinations = [c for c in combinations if c.name not in repeated]
            needed = {digest for c in combinations for digest in c.stages}
            stages = {digest: stage for digest, stage in stages.items() if digest in needed}
        if not proposed:
            self._check(refused, combinations, repeated)
        dropped = tuple(Dropped(name=name, reasons=reasons) for name, reasons in refused.items())
        return Plan.model_construct(
            experiment=self.experiment.name, stages=stages, combinations=tuple(combinations), dropped=dropped
        )

    def _check_baseline(self, baseline: ModelSpec, student: ModelFacts, image_size: int) -> None:
        """Every measurement would lack all ratios if timm had no such network, or could not build it for these images.

        A baseline without arguments that the images do not fit is left to the measurement, which states the reason:
        nobody chose the default.
        """
        try:
            facts_of(at_input_of(student, baseline, image_size))
        except ValueError as error:
            if isinstance(error, UnknownModelError) or baseline.args:
                raise PlanError(f"{self.document.path}: `measurement.baseline`: {error}") from error

    def check_fatal(self) -> None:
        """Stop at what is wrong in the spec, and not in a combination."""
        for mistake in self.mistakes:
            raise PlanError(mistake)
        if self.training.fatal:
            lines = "\n".join(f"  - {text}" for text in self.training.fatal)
            raise PlanError(f"{self.document.path} cannot be planned:\n{lines}")

    def _check(
        self, refused: dict[str, tuple[str, ...]], combinations: list[Combination], repeated: dict[str, list[int]]
    ) -> None:
        """Stop at what cannot be planned."""
        any_left = bool(combinations)
        path = self.document.path
        self.check_fatal()
        if refused and (self.experiment.matrix.on_conflict == "fail" or not any_left):
            raise PlanError(f"{path}: {_summary(refused)}\n{self._advice(any_left)}")
        if not any_left:
            raise PlanError(f"{path}: `matrix.exclude` leaves no combination. Remove an entry, or add to `include`.")
        if repeated:
            raise PlanError(f"{path}: {_same_runs(*next(iter(repeated.items())))}")

    def _advice(self, any_left: bool) -> str:
        if not any_left:
            return "No combination is left. Mend the above, or change `matrix.axes`."
        return "Mend the above, exclude these combinations, or set `matrix.on_conflict: drop` to leave them out."

    def _measure(self, result: TrainStage, student: ModelFacts, cell: Cell) -> MeasureStage:
        """The measurement of a combination's last network."""
        written: MeasurementSpec = self.slices.get("measurement", cell.choice)
        data: DataSpec = self.slices.get("data", cell.choice)
        key = (result.digest, id(written))  # slices keep what they hand out alive
        stage = self.measured.get(key)
        if stage is None:
            if id(written) not in self.conditions:
                self.conditions[id(written)] = resolved(written, self.experiment.resources)
            if written.baseline is not None:
                self._check_baseline(written.baseline, student, data.image_size)
            self.operating_points.check(written.operating_points, self.document.path)
            sweeps = self.operating_points.of(*self.training.acting[result.digest], written.operating_points)
            manifest, data_part = self.training.data(data)
            names = list(self.experiment.matrix.axes)
            axes = {names[a] for a in self.slices.axes("measurement")}
            suffix = ",".join(f"{a}={text}" for a, text in cell.labels.items() if a in axes)
            stage = self.measured[key] = measure_stage(
                result.digest,
                self.conditions[id(written)],
                data,
                data_part,
                operating_points=sweeps,
                num_classes=manifest.num_classes,
                label=f"measure:{result.label}" + (f"[{suffix}]" if suffix else ""),
            )
        return stage


def _repeated(combinations: list[Combination]) -> dict[str, list[int]]:
    """Combinations that some seeds share a measurement of, with those seeds."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for combination in combinations:
        seeds.setdefault((combination.name, combination.measured_by), []).append(combination.seed)
    return {name: shared for (name, _), shared in seeds.items() if len(shared) > 1}


def _same_runs(name: str, seeds: list[int]) -> str:
    return (
        f"the seeds {', '.join(map(str, seeds))} of `{name}` are one and the same run, because every stage of it has a "
        "`seed` of its own; their spread would say nothing. Remove `seed` from the stages that are to be repeated, or "
        "the axis of seeds."
    )


def _summary(refused: dict[str, tuple[str, ...]]) -> str:
    """Every reason once, with the combinations that it stands in the way of."""
    by_reason: dict[str, list[str]] = {}
    for name, reasons in refused.items():
        for reason in reasons:
            by_reason.setdefault(reason, []).append(name)
    lines = []
    for reason, names in list(by_reason.items())[:SHOWN_CONFLICTS]:
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        lines.append(f"  - {reason}\n      in {', '.join(f'`{n}`' for n in names[:2])}{more}")
    if len(by_reason) > SHOWN_CONFLICTS:
        lines.append(f"  - … and {len(by_reason) - SHOWN_CONFLICTS} more reasons")
    return f"{counted(len(refused), 'combination')} cannot be planned:\n" + "\n".join(lines)
