"""A validated spec to a plan: every stage of every combination once, named by what determines its output."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import PlanError
from orchestrator.planning.digest import FORMAT, MEASUREMENT_VERSION, TRAINING_VERSION, canonical, digest_of
from orchestrator.planning.environment import numerics, resolved, training_device
from orchestrator.planning.expand import Cell, cells
from orchestrator.planning.manifest import Manifest, manifest_of
from orchestrator.planning.networks import (
    Network,
    facts_at,
    from_checkpoint,
    from_timm,
    student_model,
    teacher_model,
)
from orchestrator.planning.plan import Combination, Dropped, MeasureStage, NetworkSource, Plan, TrainStage
from orchestrator.planning.slices import Choice, Incompatible, Slices
from specs.data import DataSpec
from specs.experiment import StageSpec
from specs.labels import labels
from specs.load import SpecDocument
from specs.model import ModelSpec, TeacherSpec
from specs.strategy import StrategyConfig
from strategies import registry
from strategies.api import Strategy
from strategies.catalog import UnknownModelError
from strategies.claims import conflicts
from strategies.facts import Facts

NOT_IN_DATA_DIGEST = {"root", "download", "loader_workers"}
"""Where the images lie and who reads them does not matter; what they are is in the manifest."""
NOT_IN_TRAINING_DIGEST = {"checkpoint_every_steps"}
"""How often a stage can be resumed does not change where it ends."""
SHOWN_CONFLICTS = 20


def make_plan(document: SpecDocument) -> Plan:
    """Expand the matrix and merge equal stages.

    Raises:
        PlanError: with every conflict (unless the matrix drops them) and everything else that cannot be planned.
        DataError: if the images are missing.
    """
    return _Planner(document).plan()


@dataclass(frozen=True)
class _Node:
    """A training stage in one combination, or why it cannot be."""

    stage: TrainStage | None
    network: Network | None
    """What the stage leaves, as others refer to it."""
    axes: frozenset[int]
    """Positions of the axes that matter to it, through its parents too."""
    reasons: tuple[str, ...] = ()


@dataclass
class _Planner:
    """The work of one `make_plan`; everything here is a memo."""

    document: SpecDocument
    nodes: dict[tuple[int, Choice], _Node] = field(default_factory=dict)
    measured: dict[tuple[str, str, str], MeasureStage] = field(default_factory=dict)
    manifests: dict[str, tuple[Manifest, dict[str, Any]]] = field(default_factory=dict)
    verdicts: dict[tuple[Any, ...], tuple[tuple[str, ...], bool]] = field(default_factory=dict)
    strategies: dict[str, tuple[Strategy[Any], dict[str, Any]]] = field(default_factory=dict)
    networks: dict[tuple[Any, ...], Network] = field(default_factory=dict)
    ancestors: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fatal: dict[str, None] = field(default_factory=dict)
    """Mistakes that no `on_conflict: drop` forgives; an ordered set."""

    def __post_init__(self) -> None:
        self.experiment = self.document.experiment
        self.slices = Slices(self.document)
        self.axis_names = list(self.experiment.matrix.axes)
        self.axis_labels = [labels(axis) for axis in self.experiment.matrix.axes.values()]
        self.device = training_device(self.experiment.resources)
        self.environment = numerics(self.device)
        self.trained: dict[str, TrainStage] = {}
        # A stage may depend on its own slice, on the shared ones, and on the stages before it.
        reach: set[int] = {axis for key in ("student", "teacher", "data", "seed") for axis in self.slices.axes(key)}
        self.reach: list[tuple[int, ...]] = []
        for i in range(len(self.experiment.stages)):
            reach |= set(self.slices.axes(i))
            self.reach.append(tuple(sorted(reach)))

    def plan(self) -> Plan:
        """All combinations, their stages parents first."""
        stages: dict[str, TrainStage | MeasureStage] = {}
        combinations: list[Combination] = []
        refused: dict[str, tuple[str, ...]] = {}
        last = len(self.experiment.stages) - 1
        for cell in cells(self.experiment.matrix):
            node = self._node(last, cell.choice)
            measurement = self._measure(node, cell) if node.stage is not None else None
            reasons = node.reasons if measurement is None or isinstance(measurement, MeasureStage) else measurement
            if reasons or node.stage is None or not isinstance(measurement, MeasureStage):
                refused[cell.name] = reasons
                continue
            order = self._ancestors(node.stage.digest)
            for digest in order:
                stages.setdefault(digest, self.trained[digest])
            stages.setdefault(measurement.digest, measurement)
            combinations.append(
                Combination.model_construct(
                    name=cell.name,
                    labels=cell.labels,
                    seed=self.slices.get("seed", cell.choice),
                    stages=(*order, measurement.digest),
                )
            )
        self._check(refused, bool(combinations))
        dropped = tuple(Dropped(name=name, reasons=reasons) for name, reasons in refused.items())
        return Plan.model_construct(
            experiment=self.experiment.name, stages=stages, combinations=tuple(combinations), dropped=dropped
        )

    def _check(self, refused: dict[str, tuple[str, ...]], any_left: bool) -> None:
        """Stop at what cannot be planned."""
        path = self.document.path
        if self.fatal:
            raise PlanError(f"{path} cannot be planned:\n" + "\n".join(f"  - {text}" for text in self.fatal))
        if refused and (self.experiment.matrix.on_conflict == "fail" or not any_left):
            raise PlanError(f"{path}: {_summary(refused)}\n{self._advice(any_left)}")
        if not any_left:
            raise PlanError(f"{path}: `matrix.exclude` leaves no combination. Remove an entry, or add to `include`.")

    def _advice(self, any_left: bool) -> str:
        if not any_left:
            return "No combination is left. Mend the above, or change `matrix.axes`."
        return "Mend the above, exclude these combinations, or set `matrix.on_conflict: drop` to leave them out."

    # One training stage --------------------------------------------------------------------------------------------

    def _node(self, i: int, choice: Choice) -> _Node:
        """The stage at position `i` under a cell's choice."""
        key = (i, tuple(choice[axis] for axis in self.reach[i]))
        node = self.nodes.get(key)
        if node is None:
            try:
                node = self._build(i, choice)
            except UnknownModelError as error:
                node = self._refused(i, str(error))
                place = self.document.locate(("stages", i))
                self.fatal[f"{place.file}:{place.line}: stage `{self.experiment.stages[i].name}`: {error}"] = None
            except ValueError as error:
                node = self._refused(i, str(error))
            self.nodes[key] = node
        return node

    def _refused(self, i: int, *reasons: str) -> _Node:
        name = self.experiment.stages[i].name
        return _Node(None, None, frozenset(), tuple(f"stage `{name}`: {reason}" for reason in reasons))

    def _build(self, i: int, choice: Choice) -> _Node:
        spec: StageSpec = self.slices.get(i, choice)
        data: DataSpec = self.slices.get("data", choice)
        manifest, data_part = self._data(data)
        axes = set(self.slices.axes(i)) | set(self.slices.axes("data"))

        student, init, more = self._student(i, spec, data, manifest, choice)
        axes |= more
        if student is None:
            assert init is not None
            return _Node(None, None, frozenset(), init.reasons)
        teacher, teaching, more = self._teacher(i, spec, data, manifest, choice)
        built = [self._strategy(config) for config in spec.strategies]
        facts = Facts(student.facts, teacher.facts if teacher is not None else None, student.shapes)
        reasons, needs_teacher = self._verdict(built, facts)
        if needs_teacher and teaching is not None and teaching.stage is None:
            return _Node(None, None, frozenset(), teaching.reasons)
        if reasons:
            return self._refused(i, *reasons)
        if needs_teacher:
            axes |= more
        else:
            teacher, teaching = None, None
        if spec.seed is None:
            axes |= set(self.slices.axes("seed"))
        seed = self.slices.get("seed", choice) if spec.seed is None else spec.seed
        parts = {
            "format": FORMAT,
            "kind": "train",
            "student": student.identity,
            "teacher": None if teacher is None else teacher.identity,
            "strategies": [part for _, part in built],
            "training": spec.training.model_dump(mode="json", exclude=NOT_IN_TRAINING_DIGEST),
            "data": data_part,
            "num_classes": manifest.num_classes,
            "seed": seed,
            "code": TRAINING_VERSION,
            "environment": self.environment,
        }
        digest = digest_of(parts)
        stage = self.trained.get(digest)
        if stage is None:
            parents = [n.stage.digest for n in (init, teaching) if n is not None and n.stage is not None]
            stage = self.trained[digest] = TrainStage.model_construct(
                kind="train",
                digest=digest,
                label=self._label(spec.name, axes, choice),
                digest_parts=parts,
                parents=tuple(dict.fromkeys(parents)),
                student=student.source,
                teacher=None if teacher is None else teacher.source,
                strategies=tuple(spec.strategies),
                training=spec.training,
                data=data,
                num_classes=manifest.num_classes,
                seed=seed,
            )
        left = Network(NetworkSource(stage=digest), student.model, student.facts, {"stage": digest}, {})
        return _Node(stage, left, frozenset(axes))

    def _student(
        self, i: int, spec: StageSpec, data: DataSpec, manifest: Manifest, choice: Choice
    ) -> tuple[Network | None, _Node | None, set[int]]:
        """Where the student starts, the stage it comes from, and the axes that decided."""
        if spec.init.stage is not None:
            node = self._node(self._earlier(i, spec.init.stage), choice)
            if node.network is not None and spec.model is not None:
                own = student_model(spec.model, data, manifest.num_classes)
                if own.model_copy(update={"pretrained": node.network.model.pretrained}) != node.network.model:
                    raise ValueError(
                        f"it goes on from `{spec.init.stage}`, whose network is `{node.network.model.model}`, but `model` "
                        f"says otherwise. Way out: leave `model` out of this stage."
                    )
            return node.network, node, set(node.axes)
        axes = set() if spec.model is not None else set(self.slices.axes("student"))
        wanted: ModelSpec = spec.model if spec.model is not None else self.slices.get("student", choice)
        model = student_model(wanted, data, manifest.num_classes)
        if spec.init.checkpoint is not None:
            return self._network(spec.init.checkpoint, model, data), None, axes
        return self._network(None, model, data), None, axes

    def _teacher(
        self, i: int, spec: StageSpec, data: DataSpec, manifest: Manifest, choice: Choice
    ) -> tuple[Network | None, _Node | None, set[int]]:
        """Who teaches, the stage it comes from, and the axes that decided."""
        axes = set() if spec.teacher is not None else set(self.slices.axes("teacher"))
        chosen: TeacherSpec | None = spec.teacher if spec.teacher is not None else self.slices.get("teacher", choice)
        if chosen is None:
            return None, None, axes
        if chosen.stage is not None:
            names = [stage.name for stage in self.experiment.stages]
            if spec.teacher is None and chosen.stage in names[i:]:
                return None, None, axes  # the default teacher itself learns alone, and so do the stages before it
            node = self._node(self._earlier(i, chosen.stage), choice)
            return node.network, node, axes | node.axes
        model = None if chosen.model is None else teacher_model(chosen.model, data, manifest.num_classes)
        return self._network(chosen.checkpoint, model, data), None, axes

    def _earlier(self, i: int, name: str) -> int:
        """Position of an earlier stage; axes may have assigned a name that validation has not seen."""
        names = [stage.name for stage in self.experiment.stages[:i]]
        if name not in names:
            known = ", ".join(f"`{n}`" for n in names) or "none"
            raise Incompatible(f"there is no stage `{name}` before it. Way out: one of {known}.")
        return names.index(name)

    def _network(self, checkpoint: str | None, model: ModelSpec | None, data: DataSpec) -> Network:
        key = (checkpoint, None if model is None else canonical(model.model_dump(mode="json")), data.image_size)
        found = self.networks.get(key)
        if found is None:
            if checkpoint is not None:
                found = from_checkpoint(checkpoint, model, data)
            else:
                assert model is not None
                found = from_timm(model, data)
            self.networks[key] = found
        return found

    def _data(self, data: DataSpec) -> tuple[Manifest, dict[str, Any]]:
        key = canonical(data.model_dump(mode="json"))
        found = self.manifests.get(key)
        if found is None:
            manifest = manifest_of(data)
            if len(data.mean) != len(data.std):
                raise PlanError(
                    f"`data.mean` has {len(data.mean)} values and `data.std` {len(data.std)}; one a channel."
                )
            part = data.model_dump(mode="json", exclude=NOT_IN_DATA_DIGEST) | {"manifest": manifest.digest}
            found = self.manifests[key] = (manifest, part)
        return found

    def _strategy(self, config: StrategyConfig) -> tuple[Strategy[Any], dict[str, Any]]:
        """The strategy and its part of the digest; equal options share one object."""
        options = config.model_dump(mode="json")
        key = canonical(options)
        found = self.strategies.get(key)
        if found is None:
            strategy = registry.build(config)
            found = self.strategies[key] = (strategy, {"options": options, "version": strategy.version})
        return found

    def _verdict(self, built: list[tuple[Strategy[Any], dict[str, Any]]], facts: Facts) -> tuple[tuple[str, ...], bool]:
        """Why the strategies cannot act together, and whether any needs the teacher."""
        shapes = tuple(sorted(facts.shapes.items()))
        key = (tuple(id(strategy) for strategy, _ in built), facts.student, facts.teacher, shapes)
        found = self.verdicts.get(key)
        if found is None:
            strategies = [strategy for strategy, _ in built]
            reasons = tuple(conflicts(strategies, facts))
            needs = any(_needs_teacher(strategy, facts) for strategy in strategies) if not reasons else True
            found = self.verdicts[key] = (reasons, needs)
        return found

    def _label(self, name: str, axes: Iterable[int], choice: Choice) -> str:
        named = [f"{self.axis_names[a]}={self.axis_labels[a][choice[a]]}" for a in sorted(axes)]
        return f"{name}[{','.join(named)}]" if named else name

    # Measurements and order ------------------------------------------------------------------------------------------

    def _measure(self, node: _Node, cell: Cell) -> MeasureStage | tuple[str, ...]:
        """The measurement of a combination's last network, or why there is none."""
        assert node.stage is not None
        try:
            wanted = resolved(self.slices.get("measurement", cell.choice), self.experiment.resources)
            data: DataSpec = self.slices.get("data", cell.choice)
        except Incompatible as error:
            return (str(error),)
        conditions = wanted.model_dump(mode="json")
        manifest, data_part = self._data(data)
        key = (node.stage.digest, canonical(conditions), canonical(data_part))
        stage = self.measured.get(key)
        if stage is None:
            parts = {
                "format": FORMAT,
                "kind": "measure",
                "network": node.stage.digest,
                "measurement": conditions,
                "data": data_part,
                "input_size": data.image_size,
                "code": MEASUREMENT_VERSION,
                "environment": {**self.environment, "device": wanted.device},
            }
            axes = {self.axis_names[a] for a in self.slices.axes("measurement")}
            suffix = ",".join(f"{a}={text}" for a, text in cell.labels.items() if a in axes)
            stage = self.measured[key] = MeasureStage.model_construct(
                kind="measure",
                digest=digest_of(parts),
                label=f"measure:{node.stage.label}" + (f"[{suffix}]" if suffix else ""),
                digest_parts=parts,
                parents=(node.stage.digest,),
                measurement=wanted,
                data=data,
                num_classes=manifest.num_classes,
                input_size=data.image_size,
            )
        return stage

    def _ancestors(self, digest: str) -> tuple[str, ...]:
        """A training stage and all it depends on, parents first."""
        found = self.ancestors.get(digest)
        if found is None:
            order: dict[str, None] = {}
            for parent in self.trained[digest].parents:
                order.update(dict.fromkeys(self._ancestors(parent)))
            found = self.ancestors[digest] = (*order, digest)
        return found


def _needs_teacher(strategy: Strategy[Any], facts: Facts) -> bool:
    return any(claim.what.startswith("teacher.") for claim in strategy.claims(facts).needs)


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
    count = f"{len(refused)} combination{'s' if len(refused) != 1 else ''}"
    return f"{count} cannot be planned:\n" + "\n".join(lines)
