"""timm's optimisers and learning rate schedules, set up from a spec."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler

from specs.training import OptimizerSpec, TrainingSpec
from strategies.backbone import Student

ADAM_FAMILY = frozenset({"adamw", "nadamw", "lamb", "lion"})
TIMM_SCHEDULES = {"cosine": "cosine", "linear": "poly", "constant": "constant"}


def make_optimizer(student: Student, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """Build the optimiser. Biases, norms and what timm's network names (position embeddings, class token) get no
    weight decay; with `layer_decay`, earlier blocks learn more slowly and the strategies' modules at the full rate."""
    exempt = set(getattr(student.model, "no_weight_decay", set)())
    if spec.layer_decay is None:
        groups = param_groups_weight_decay(student.model, spec.weight_decay, no_weight_decay_list=exempt)
    else:
        groups = param_groups_layer_decay(
            student.model, spec.weight_decay, no_weight_decay_list=exempt, layer_decay=spec.layer_decay
        )
    groups += param_groups_weight_decay(student.extras, spec.weight_decay)
    options: dict[str, Any] = {"momentum": spec.momentum} if spec.name == "sgd" else {}
    if spec.name in ADAM_FAMILY and spec.betas is not None:
        options["betas"] = tuple(spec.betas)
    if spec.name in ADAM_FAMILY - {"lion"} and spec.eps is not None:
        options["eps"] = spec.eps
    return create_optimizer_v2(groups, opt=spec.name, lr=spec.lr, weight_decay=spec.weight_decay, **options)


def make_schedule(optimizer: torch.optim.Optimizer, training: TrainingSpec, steps_per_epoch: int) -> Scheduler:
    """Build the schedule; `step_update(step)` sets the learning rate of a step, whatever was set before."""
    spec = training.schedule
    options: dict[str, Any] = {
        "sched": TIMM_SCHEDULES[spec.name],
        "num_epochs": training.epochs,
        "warmup_epochs": spec.warmup_epochs,  # timm takes fractions, whatever its annotation says
        "warmup_lr": spec.warmup_lr,
        "min_lr": spec.min_lr,
        "decay_rate": 1.0,  # of `poly`: the power, so a straight line
        "step_on_epochs": False,
        "updates_per_epoch": steps_per_epoch,
    }
    schedule: Scheduler = create_scheduler_v2(optimizer, **options)[0]
    return schedule
