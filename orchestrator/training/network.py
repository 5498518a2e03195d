"""Student and teacher of a stage, from wherever they come."""

from __future__ import annotations

import copy
import logging
from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cluster.storage import ArtifactSource
from orchestrator.errors import SpecError, StoreError
from orchestrator.planning.plan import NetworkSource, TrainStage
from orchestrator.training.checkpoint import SavedNetwork, load_network, read_network, read_tensors
from orchestrator.training.seeding import derive, seed_all
from orchestrator.training.stored_teacher import StoredTeacher
from orchestrator.training.teachers import Teachers, View, view_of
from specs.data import DataSpec
from specs.model import ModelSpec
from strategies import registry
from strategies.api import TEACHER_LOGITS, Strategy
from strategies.backbone import EXTRAS, Student
from strategies.catalog import facts_of, takes_image_size
from strategies.claims import left_by
from strategies.compose import build_model, compose, needs_of, ordered, student_of, teacher_of
from strategies.facts import Facts, ModelFacts
from strategies.shapes import WHOLE, Shapes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Networks:
    """What a stage trains, and with whom."""

    student: Student
    teacher: Teachers | None
    """All of the stage's teachers as one; `None` without any, and where the answers are stored."""
    stored: StoredTeacher | None
    strategies: list[Strategy[Any]]
    """In the order in which they act."""
    model: ModelSpec
    """The student's timm network, its arguments complete."""
    facts: Facts
    """Of the student before strategies changed its shapes."""


def assemble(stage: TrainStage, store: ArtifactSource, device: torch.device) -> Networks:
    """Build the student with its strategies, and the teacher if there is one.

    Raises:
        SpecError: if a network cannot be built, strategies conflict, or the networks do not fit the data or each other.
        StoreError: if weights are missing, damaged, or belong to another network.
    """
    try:
        strategies = ordered([registry.build(config) for config in stage.strategies])
        seed_all(derive(stage.seed, "network"))
        model, spec, saved = _timm_model(stage.student, store)
        stored, taught_by = None, []
        if stage.teacher is not None and stage.teacher.store is not None:
            stored = StoredTeacher(stage, stage.teacher.store, store, device)
        else:
            taught_by = [_teacher(source, store, stage.data) for source in stage.teachers]
        shapes = WHOLE if saved is None else saved.shapes
        known = [known for _, _, known in taught_by] if stored is None else [stored.facts]
        facts = Facts.of(facts_of(spec), shapes, known)
        _check_fit(stage, facts, strategies)
        absent = frozenset() if saved is None else model.state_dict().keys() - saved.state.keys()
        seed_all(derive(stage.seed, "strategies"))
        student = compose(model, strategies, facts)
        if saved is not None:
            _check_nothing_is_missing(student, absent, saved)
            _inherit_extras(stage.label, student, saved.state)
        after = facts.further(student.shapes)
        networks = [teacher_of(network, strategies, after, i) for i, (network, _, _) in enumerate(taught_by)]
        teacher = Teachers(networks, [view for _, view, _ in taught_by]).to(device) if networks else None
    except ValueError as error:
        raise SpecError(f"stage `{stage.label}`: {error}") from error
    return Networks(student.to(device), teacher, stored, strategies, spec, facts)


def teacher_alone(source: NetworkSource, store: ArtifactSource, data: DataSpec) -> Teachers:
    """A frozen teacher that hands out nothing but its logits, on CPU.

    Raises:
        SpecError: if it cannot be built.
        StoreError: if its weights are missing or damaged.
    """
    try:
        network, view, facts = _teacher(source, store, data)
        return Teachers([teacher_of(network, [], Facts(facts))], [view])
    except ValueError as error:
        raise SpecError(f"the teacher to be stored: {error}") from error


def recomposed(stage: TrainStage, networks: Networks, shapes: Shapes) -> tuple[Student, list[Strategy[Any]]]:
    """The stage's student at other shapes, with strategies attached anew; its weights mean nothing yet.

    Args:
        networks: of the stage, as it began.
        shapes: of the student, smaller than there.

    Returns:
        The student, and its strategies in the order in which they act.
    """
    strategies = ordered([registry.build(config) for config in stage.strategies])
    spec = networks.model.model_copy(update={"pretrained": False})
    seed_all(derive(stage.seed, "strategies"))
    facts = networks.facts.further(shapes)
    student = compose(build_model(spec, shapes), strategies, facts, restored=True)
    for number, teacher in enumerate(networks.teacher.networks if networks.teacher is not None else ()):
        assert isinstance(teacher, Student)
        teacher_of(teacher, strategies, facts, number)  # which of its blocks are compared may depend on the student
    return student.to(next(networks.student.parameters()).device), strategies


def _timm_model(source: NetworkSource, store: ArtifactSource) -> tuple[nn.Module, ModelSpec, SavedNetwork | None]:
    """The timm network with its weights and pruned shapes, without strategies."""
    folder = _folder(source, store)
    if folder is not None:
        saved = read_network(folder)
        model = build_model(saved.model, saved.shapes)
        _load(model, {k: v for k, v in saved.state.items() if not k.startswith(EXTRAS)}, folder, partly=True)
        return model, saved.model, saved
    assert source.model is not None, "a network comes from a stage, a checkpoint or a model"
    if source.checkpoint is None:
        return build_model(source.model), source.model, None
    model = build_model(source.model.model_copy(update={"pretrained": False}))
    _load(model, read_tensors(Path(source.checkpoint)), Path(source.checkpoint))
    return model, source.model, None


def _teacher(source: NetworkSource, store: ArtifactSource, data: DataSpec) -> tuple[Student, View, ModelFacts]:
    """A teaching network, and how it sees the student's images."""
    network, facts = _teaching_network(source, store)
    if not takes_image_size(facts.model):
        facts = replace(facts, image_size=source.image_size or data.image_size)
    return network, view_of(network, source, data), facts


def _teaching_network(source: NetworkSource, store: ArtifactSource) -> tuple[Student, ModelFacts]:
    """From an artefact with its strategies, so that it answers as it was measured."""
    folder = _folder(source, store)
    if folder is not None:
        saved = read_network(folder)
        return load_network(folder), facts_of(saved.model).at(saved.shapes)
    model, spec, _ = _timm_model(source, store)
    own = getattr(model, "pretrained_cfg", {}).get("num_classes")
    if spec.pretrained and own != getattr(model, "num_classes", own):
        raise ValueError(
            f"the teacher `{spec.model}` was pretrained for {own} classes, and the data has {model.num_classes}; "
            "its classifier would be random. Train it in a stage of its own first, and name that as `teacher.stage`"
        )
    return student_of(model), facts_of(spec)


def _folder(source: NetworkSource, store: ArtifactSource) -> Path | None:
    """Local folder with `model.json`, or `None` if the network comes as bare timm weights or from timm itself."""
    if source.stage is not None:
        try:
            return store.fetch(f"stages/{source.stage}")
        except (FileNotFoundError, ValueError) as error:
            raise StoreError(f"the network of an earlier stage cannot be used: {error}") from error
    if source.checkpoint is None:
        return None
    path = Path(source.checkpoint)
    if not path.exists():
        raise StoreError(f"there is no checkpoint at {path}; correct `init.checkpoint` or `teacher.checkpoint`")
    return path if path.is_dir() else None


def _load(model: nn.Module, state: dict[str, Tensor], where: Path, *, partly: bool = False) -> None:
    """Load weights; `partly`: some may be missing, because strategies took their modules out of the network."""
    try:
        unexpected = model.load_state_dict(state, strict=not partly).unexpected_keys
    except RuntimeError as error:
        raise StoreError(f"the weights in {where} belong to another network: {error}") from error
    if unexpected:
        raise StoreError(f"the weights in {where} belong to another network: it has no {', '.join(unexpected)}")


def _check_nothing_is_missing(student: Student, absent: Set[str], saved: SavedNetwork) -> None:
    """Raise `ValueError` if the network still has weights of timm's that an earlier stage's strategies took away.

    Args:
        absent: timm's weights that the earlier stage's network had no more.
    """
    missing = sorted(student.network_state().keys() & absent)
    if missing:
        before = ", ".join(f"`{config.name}`" for config in saved.strategies)
        raise ValueError(
            f"the network of the earlier stage has no {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}: its "
            f"strategies ({before}) took these weights away. List those strategies here too, with the same options, or "
            "start from another stage"
        )


def _inherit_extras(label: str, student: Student, state: dict[str, Tensor]) -> None:
    """Where a strategy acted in the earlier stage too, its modules go on from what they were if all of them fit; else
    they start anew."""
    for name, module in student.extras.items():
        prefix = f"{EXTRAS}{name}."
        found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if not found:
            continue
        try:
            copy.deepcopy(module).load_state_dict(found)  # what does not fit is refused half-way
        except RuntimeError as error:
            log.warning(
                "stage `%s`: modules of `%s` begin anew, those of the earlier stage differ: %s", label, name, error
            )
            continue
        module.load_state_dict(found)


def _check_fit(stage: TrainStage, facts: Facts, strategies: list[Strategy[Any]]) -> None:
    """Raise `ValueError` where the networks do not fit the data or each other."""
    channels = len(stage.data.mean)
    sides = [stage.data.image_size, *(source.image_size or stage.data.image_size for source in stage.teachers)]
    for number, (network, side) in enumerate(zip((facts.student, *facts.teachers), sides, strict=True)):
        who = "teacher" if number else "student"
        if network.in_chans != channels:
            raise ValueError(
                f"the {who} `{network.model}` takes {network.in_chans} channels, and `data.mean` has {channels}; "
                f"set `in_chans: {channels}` in its `args`, or give `data.mean` and `data.std` as many values"
            )
        if network.family == "vit" and network.image_size != side:
            shown = f"the stage shows it {side} px" if number else f"`data.image_size` is {side}"
            raise ValueError(
                f"the {who} `{network.model}` takes images of {network.image_size} px, and {shown}; "
                f"set `img_size: {side}` in its `args`"
            )
    if facts.student.num_classes != stage.num_classes:
        raise ValueError(
            f"the student `{facts.student.model}` tells {facts.student.num_classes} classes apart, and the data has "
            f"{stage.num_classes}; set `num_classes: {stage.num_classes}` in its `args`"
        )
    needs = needs_of(strategies, left_by(strategies, facts))
    read = {claim.teacher for claim in needs if claim.what == TEACHER_LOGITS}
    for number, network in enumerate(facts.teachers):
        if number in read and network.num_classes != facts.student.num_classes:
            raise ValueError(
                f"the teacher `{network.model}` has {network.num_classes} classes and the student "
                f"`{facts.student.model}` has {facts.student.num_classes}; response distillation needs the same classes"
            )
