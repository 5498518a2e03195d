"""The training stages of a plan: what each combination asks of a stage of the spec, equal ones merged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.planning.digest import FORMAT, TRAINING_VERSION, canonical, digest_of
from orchestrator.planning.feasible import num_training_images, obstacles, too_short
from orchestrator.planning.manifest import Manifest, Manifests
from orchestrator.planning.networks import (
    Network,
    as_teacher,
    from_checkpoint,
    from_timm,
    student_model,
    teacher_model,
)
from orchestrator.planning.plan import NetworkSource, StoreStage, TrainStage
from orchestrator.planning.slices import Choice, Incompatible, Slices
from orchestrator.planning.stored import store_stage
from specs.data import DataSpec
from specs.experiment import StageSpec
from specs.labels import labels
from specs.load import SpecDocument
from specs.model import FurtherTeacherSpec, ModelSpec, StoredSpec, TeacherSpec
from specs.strategy import StrategyConfig
from specs.training import TrainingSpec
from strategies import registry
from strategies.api import Strategy
from strategies.catalog import UnknownModelError
from strategies.claims import conflicts, left_by
from strategies.facts import Facts

NOT_IN_DATA_DIGEST = {"root", "endpoint", "download", "loader_workers"}
"""Where the images lie and who reads them does not matter; what they are is in the manifest."""
NOT_IN_TRAINING_DIGEST = {"checkpoint_every_steps"}
"""How often a stage can be resumed does not change where it ends."""


@dataclass(frozen=True)
class Node:
    """A training stage in one combination (or the stored answers of one), or why it cannot be."""

    stage: TrainStage | StoreStage | None
    network: Network | None
    """What the stage leaves, as others refer to it."""
    axes: frozenset[int]
    """Positions of the axes that matter to it, through its parents too."""
    reasons: tuple[str, ...] = ()


@dataclass
class TrainStages:
    """Builds training stages, each once; all fields below `environment` are memos.

    Where a memo goes by `id`, its key is a slice, which `slices` keeps alive and hands out as the same object.
    """

    document: SpecDocument
    slices: Slices
    environment: dict[str, str]
    """What numbers depend on, see `environment.numerics`."""
    built: dict[str, TrainStage] = field(default_factory=dict)
    """All training stages built so far, by digest."""
    stores: dict[str, StoreStage] = field(default_factory=dict)
    """All stored teachers so far, by digest."""
    fatal: dict[str, None] = field(default_factory=dict)
    """Mistakes that no `on_conflict: drop` forgives (an ordered set)."""
    acting: dict[str, tuple[tuple[Strategy[Any], ...], Facts]] = field(default_factory=dict)
    """The strategies of each stage, and what they were told of the networks, by digest."""
    _nodes: dict[tuple[int, Choice], Node] = field(default_factory=dict)
    _manifests: Manifests = field(default_factory=Manifests)
    _data: dict[int, tuple[Manifest, dict[str, Any]]] = field(default_factory=dict)
    _verdicts: dict[tuple[Any, ...], tuple[tuple[str, ...], int]] = field(default_factory=dict)
    _strategies: dict[int | str, tuple[Strategy[Any], dict[str, Any]]] = field(default_factory=dict)
    _networks: dict[tuple[Any, ...], Network] = field(default_factory=dict)
    _ancestors: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._experiment = self.document.experiment
        self._axes = [(name, labels(axis)) for name, axis in self._experiment.matrix.axes.items()]
        # A stage may depend on its own slice, on the shared ones, and on the stages before it.
        reach: set[int] = {axis for key in ("student", "teacher", "data", "seed") for axis in self.slices.axes(key)}
        self._reach: list[tuple[int, ...]] = []
        for i in range(len(self._experiment.stages)):
            reach |= set(self.slices.axes(i))
            self._reach.append(tuple(sorted(reach)))

    def node(self, i: int, choice: Choice) -> Node:
        """The stage at position `i` under a cell's choice."""
        key = (i, tuple(choice[axis] for axis in self._reach[i]))
        node = self._nodes.get(key)
        if node is None:
            try:
                node = self._build(i, choice)
            except UnknownModelError as error:
                node = self._refused(i, str(error))
                place = self.document.locate(("stages", i))
                self.fatal[f"{place.file}:{place.line}: stage `{self._experiment.stages[i].name}`: {error}"] = None
            except ValueError as error:
                node = self._refused(i, str(error))
            self._nodes[key] = node
        return node

    def _refused(self, i: int, *reasons: str) -> Node:
        name = self._experiment.stages[i].name
        return Node(None, None, frozenset(), tuple(f"stage `{name}`: {reason}" for reason in reasons))

    def _build(self, i: int, choice: Choice) -> Node:
        spec: StageSpec = self.slices.get(i, choice)
        data: DataSpec = self.slices.get("data", choice)
        manifest, data_part = self.data(data)
        axes = set(self.slices.axes(i)) | set(self.slices.axes("data"))

        student, init, more = self._student(i, spec, data, manifest, choice)
        axes |= more
        if student is None:
            assert init is not None
            return Node(None, None, frozenset(), init.reasons)
        taught_by, more = self._teachers(i, spec, data, manifest, choice)
        known = [network.facts for network, _ in taught_by if network is not None]
        built = [self._strategy(config) for config in spec.strategies]
        facts = Facts(student.facts, known[0] if known else None, student.shapes, tuple(known[1:]))
        reasons, num_teachers = self._verdict(built, facts)
        for _, node in taught_by if num_teachers else ():
            if node is not None and node.stage is None:
                return Node(None, None, frozenset(), node.reasons)
        num_train = num_training_images(data, manifest.num_train)
        reasons += tuple(obstacles(spec.training, self._experiment.resources, num_train))
        reasons += tuple(too_short([strategy for strategy, _ in built], spec.training, num_train))
        resources, together = self._experiment.resources, _compares_images(built, facts)
        at_once = spec.training.images_at_once(resources.fewest_workers)
        if together and at_once != spec.training.images_at_once(resources.most_workers):
            reasons += (
                "its numbers depend on how many images a worker has at once, which `resources.workers: {min, max}` "
                "leaves open. Way out: set `training.micro_batch`, or `resources.workers` to one number.",
            )
        if reasons:
            return self._refused(i, *reasons)
        taught_by = taught_by[:num_teachers]
        teachers = [network for network, _ in taught_by if network is not None]
        axes |= (more if teachers else set()).union(*(node.axes for _, node in taught_by if node is not None))
        if spec.seed is None:
            axes |= set(self.slices.axes("seed"))
        seed = self.slices.get("seed", choice) if spec.seed is None else spec.seed
        parts: dict[str, Any] = {
            "format": FORMAT,
            "kind": "train",
            "student": student.identity,
            "teacher": teachers[0].identity if teachers else None,
            "strategies": [part for _, part in built],
            "training": spec.training.model_dump(mode="json", exclude=NOT_IN_TRAINING_DIGEST),
            "data": data_part,
            "num_classes": manifest.num_classes,
            "seed": seed,
            "code": TRAINING_VERSION,
            "environment": self.environment,
        }
        if len(teachers) > 1:
            parts["other_teachers"] = [teacher.identity for teacher in teachers[1:]]
        if together and at_once != spec.training.images_at_once(1):
            parts["micro_batch"] = at_once
        digest = digest_of(parts)
        stage = self.built.get(digest)
        if stage is None:
            self.acting[digest] = tuple(strategy for strategy, _ in built), facts
            read = (init, *(node for _, node in taught_by))
            parents = [node.stage.digest for node in read if node is not None and node.stage is not None]
            stage = self.built[digest] = TrainStage.model_construct(
                kind="train",
                digest=digest,
                label=self._label(spec.name, axes, choice),
                digest_parts=parts,
                parents=tuple(dict.fromkeys(parents)),
                student=student.source,
                teacher=teachers[0].source if teachers else None,
                other_teachers=tuple(teacher.source for teacher in teachers[1:]),
                strategies=tuple(spec.strategies),
                training=spec.training,
                data=data,
                num_classes=manifest.num_classes,
                seed=seed,
                images_seed=self._images_seed(teachers[0] if teachers else None),
            )
        after = left_by([strategy for strategy, _ in built], facts)
        left = Network(NetworkSource(stage=digest), student.model, after.student, {"stage": digest}, after.shapes)
        return Node(stage, left, frozenset(axes))

    def _student(
        self, i: int, spec: StageSpec, data: DataSpec, manifest: Manifest, choice: Choice
    ) -> tuple[Network | None, Node | None, set[int]]:
        """Where the student starts, the stage it comes from, and the axes that decided."""
        if spec.init.stage is not None:
            node = self.node(self._earlier(i, spec.init.stage), choice)
            if node.network is not None and spec.model is not None:
                own = student_model(spec.model, data, manifest.num_classes)
                if own.model_copy(update={"pretrained": node.network.model.pretrained}) != node.network.model:
                    raise ValueError(
                        f"it goes on from `{spec.init.stage}`, whose network is `{node.network.model.model}`, but "
                        "`model` says otherwise. Way out: leave `model` out of this stage."
                    )
            return node.network, node, set(node.axes)
        axes = set() if spec.model is not None else set(self.slices.axes("student"))
        wanted: ModelSpec = spec.model if spec.model is not None else self.slices.get("student", choice)
        key = ("student", id(wanted), id(data), spec.init.checkpoint)
        network = self._networks.get(key)
        if network is None:
            model = student_model(wanted, data, manifest.num_classes)
            network = self._networks[key] = _network(spec.init.checkpoint, model, data)
        return network, None, axes

    def _teachers(
        self, i: int, spec: StageSpec, data: DataSpec, manifest: Manifest, choice: Choice
    ) -> tuple[list[tuple[Network | None, Node | None]], set[int]]:
        """Who teaches, each with the stage it comes from, and the axes that decided which."""
        axes = set() if spec.teacher is not None else set(self.slices.axes("teacher"))
        chosen: TeacherSpec | None = spec.teacher if spec.teacher is not None else self.slices.get("teacher", choice)
        if chosen is None:
            return [], axes
        later = [stage.name for stage in self._experiment.stages[i:]]
        if spec.teacher is None and any(one.stage in later for one in chosen.everyone):
            return [], axes  # the default teachers themselves learn alone, and so do the stages before them
        taught_by = [self._teacher(i, one, data, manifest, choice) for one in chosen.everyone]
        first, made_by = taught_by[0]
        if chosen.stored is not None and first is not None:
            taught_by[0] = self._stored(first, made_by, chosen.stored, spec.training, data)
        return taught_by, axes

    def _stored(
        self, teacher: Network, node: Node | None, stored: StoredSpec, training: TrainingSpec, data: DataSpec
    ) -> tuple[Network, Node]:
        """The teacher's answers in place of the teacher."""
        manifest, data_part = self.data(data)
        trained = None if node is None else node.stage
        stage = store_stage(
            teacher,
            stored,
            training,
            data,
            data_part,
            num_train=num_training_images(data, manifest.num_train),
            parents=() if trained is None else (trained.digest,),
            label=teacher.model.model if trained is None else trained.label,
            environment=self.environment,
        )
        stage = self.stores.setdefault(stage.digest, stage)
        facts = replace(teacher.facts, answers_only=True)
        source = NetworkSource(store=stage.digest, image_size=teacher.source.image_size)
        network = Network(source, teacher.model, facts, {"stored": stage.digest}, teacher.shapes)
        return network, Node(stage, network, frozenset() if node is None else node.axes)

    def _images_seed(self, teacher: Network | None) -> int | None:
        """Seed of the images where a stored teacher has seen them already."""
        return None if teacher is None or teacher.source.store is None else self.stores[teacher.source.store].seed

    def _teacher(
        self, i: int, chosen: FurtherTeacherSpec, data: DataSpec, manifest: Manifest, choice: Choice
    ) -> tuple[Network | None, Node | None]:
        """One teacher, and the stage it comes from."""
        node = None if chosen.stage is None else self.node(self._earlier(i, chosen.stage), choice)
        if node is not None and node.network is None:
            return None, node
        key = ("teacher", id(chosen), id(data), None if node is None or node.stage is None else node.stage.digest)
        network = self._networks.get(key)
        if network is None:
            try:
                if node is not None and node.network is not None:
                    network = node.network
                else:
                    side, classes = chosen.image_size, manifest.num_classes
                    model = None if chosen.model is None else teacher_model(chosen.model, data, classes, side)
                    network = _network(chosen.checkpoint, model, data)
                network = self._networks[key] = as_teacher(network, chosen.image_size, data)
            except ValueError as error:
                kind = UnknownModelError if isinstance(error, UnknownModelError) else ValueError
                raise kind(f"its teacher: {error}") from error
        return network, node

    def _earlier(self, i: int, name: str) -> int:
        """Position of an earlier stage; axes may have assigned a name that validation has not seen."""
        names = [stage.name for stage in self._experiment.stages[:i]]
        if name not in names:
            known = ", ".join(f"`{n}`" for n in names) or "none"
            raise Incompatible(f"there is no stage `{name}` before it. Way out: one of {known}.")
        return names.index(name)

    def data(self, data: DataSpec) -> tuple[Manifest, dict[str, Any]]:
        """What the data holds, and its part of digests."""
        found = self._data.get(id(data))
        if found is None:
            manifest = self._manifests.of(data)
            part = data.model_dump(mode="json", exclude=NOT_IN_DATA_DIGEST) | {"manifest": manifest.digest}
            found = self._data[id(data)] = (manifest, part)
        return found

    def _strategy(self, config: StrategyConfig) -> tuple[Strategy[Any], dict[str, Any]]:
        """The strategy and its part of the digest; equal options share one object."""
        found = self._strategies.get(id(config))
        if found is None:
            options = config.model_dump(mode="json")
            key = canonical(options)
            found = self._strategies.get(key)
            if found is None:
                strategy = registry.build(config)
                found = self._strategies[key] = (strategy, {"options": options, "version": strategy.version})
            self._strategies[id(config)] = found
        return found

    def _verdict(self, built: list[tuple[Strategy[Any], dict[str, Any]]], facts: Facts) -> tuple[tuple[str, ...], int]:
        """Why the strategies cannot act together, and how many of the stage's teachers they need."""
        key = (tuple(id(strategy) for strategy, _ in built), facts.student, facts.teachers, facts.shapes)
        found = self._verdicts.get(key)
        if found is None:
            strategies = [strategy for strategy, _ in built]
            reasons = tuple(conflicts(strategies, facts))
            after = facts if reasons else left_by(strategies, facts)
            needs = max((_teachers_needed(strategy, after) for strategy in strategies), default=0) if not reasons else 1
            found = self._verdicts[key] = (reasons, needs)
        return found

    def _label(self, name: str, axes: Iterable[int], choice: Choice) -> str:
        named = [f"{self._axes[a][0]}={self._axes[a][1][choice[a]]}" for a in sorted(axes)]
        return f"{name}[{','.join(named)}]" if named else name

    def stage(self, digest: str) -> TrainStage | StoreStage:
        """The stage of this name."""
        return self.built[digest] if digest in self.built else self.stores[digest]

    def ancestors(self, digest: str) -> tuple[str, ...]:
        """A stage that trains or stores and all it depends on, parents first."""
        found = self._ancestors.get(digest)
        if found is None:
            order: dict[str, None] = {}
            for parent in self.stage(digest).parents:
                order.update(dict.fromkeys(self.ancestors(parent)))
            found = self._ancestors[digest] = (*order, digest)
        return found


def _compares_images(built: list[tuple[Strategy[Any], dict[str, Any]]], facts: Facts) -> bool:
    """Whether the numbers depend on which images share a micro-batch; networks of other families have batch norms."""
    return facts.student.family == "other" or any(strategy.compares_images() for strategy, _ in built)


def _teachers_needed(strategy: Strategy[Any], facts: Facts) -> int:
    """How many of the stage's teachers, counted from the first, this strategy reaches."""
    needs = strategy.claims(facts).needs
    return max((claim.teacher + 1 for claim in needs if claim.what.startswith("teacher.")), default=0)


def _network(checkpoint: str | None, model: ModelSpec | None, data: DataSpec) -> Network:
    if checkpoint is not None:
        return from_checkpoint(checkpoint, model, data)
    assert model is not None, "a network comes from a stage, a checkpoint or a model"
    return from_timm(model, data)
