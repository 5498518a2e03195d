"""Pruning inside a stage: the loop cuts the network, its average and its optimiser, and goes on."""

from __future__ import annotations

import copy
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from cluster.local import LocalStore
from orchestrator.planning.plan import NetworkSource
from orchestrator.training.calibration import gradients_over
from orchestrator.training.checkpoint import load_network
from orchestrator.training.distributed import WorkerGroup
from orchestrator.training.interface import StageInterrupted, WorkerContext
from orchestrator.training.network import assemble
from orchestrator.training.running import Running
from specs.data import Sample
from specs.model import ModelSpec
from strategies import registry
from strategies.carry import axes_of
from strategies.surgery import EMBED, apply

EVERYTHING = ("heads", "mlp", "embed", "depth")
SCRIPT = Path(__file__).with_name("run_stage.py")
ROOT = Path(__file__).parents[2]


def config(name, **options):
    return registry.resolver(name)(name=name, **options)


def pruning(**options):
    return config("structured_pruning", **{"ratio": 0.5, "importance": "taylor", "calibration_images": 32, **options})


def kept(store, stage):
    return load_network(store.fetch(f"stages/{stage.digest}"))


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "hessian"])
def test_a_stage_prunes_in_steps_and_trains_on(make_stage, run, store, importance):
    strategies = (pruning(importance=importance, steps=2, what=EVERYTHING), config("early_exit", blocks=(0,)))
    stage = make_stage(strategies=strategies, epochs=2, ema=0.5, optimizer={"lr": 1e-3})
    losses = []
    run(stage, report=lambda p: losses.append(p.values["loss"]) if p.kind == "epoch" else None)
    network = kept(store, stage)
    assert network.shapes.embed_dim == 24
    assert len(network.model.blocks) == len(network.shapes.removed) == 2
    assert network.model.head.in_features == 24
    assert sum(block.mlp_hidden for block in network.shapes.blocks.values()) == pytest.approx(192, abs=8)
    assert losses[1] < losses[0]


@pytest.mark.parametrize("stop_after", [5, 7])  # right before the second cut, and after it
def test_an_interrupted_stage_ends_as_without_the_interruption(make_stage, run, tmp_path, stop_after):
    strategies = (pruning(steps=2, recover_epochs=0.5, what=EVERYTHING), config("early_exit", blocks=(0,)))
    stage = make_stage(strategies=strategies, ema=0.9, args={"drop_path_rate": 0.1})
    whole, parted = LocalStore(tmp_path / "whole"), LocalStore(tmp_path / "parted")
    run(stage, store=whole)
    votes = itertools.count(1)
    with pytest.raises(StageInterrupted, match=f"after step {stop_after}"):
        run(stage, store=parted, should_stop=lambda: next(votes) >= stop_after)
    said = []
    run(stage, store=parted, report=said.append)
    assert (said[0].kind, said[0].step) == ("resumed", stop_after)
    weights = [(s.fetch(f"stages/{stage.digest}") / "model.safetensors").read_bytes() for s in (whole, parted)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("what", [("heads", "mlp"), EVERYTHING])
def test_a_network_that_is_cut_goes_on_learning_features(make_stage, run, store, tmp_path, what):
    """The projector follows the width, the pairs follow the blocks, and nothing depends on an interruption."""
    teacher = NetworkSource(
        model=ModelSpec(
            model="vit_tiny_patch16_224",
            args={**make_stage().student.model.args, "embed_dim": 64, "num_heads": 4, "depth": 6},
        )
    )
    strategies = (pruning(steps=2, recover_epochs=0.5, what=what), config("feature"))
    stage = make_stage(teacher=teacher, strategies=strategies, epochs=2, ema=0.9, optimizer={"lr": 1e-3})
    terms = []
    run(stage, report=lambda p: terms.append(p.values) if p.kind == "epoch" else None)
    network = kept(store, stage)
    depth, width = (2, 24) if what == EVERYTHING else (4, 48)
    assert (len(network.model.blocks), network.model.embed_dim) == (depth, width)
    (name,) = [key for key in terms[0] if key.startswith("feature.")]
    assert terms[1][name] < terms[0][name]
    projected = [m for m in network.extras["feature"].modules() if isinstance(m, nn.Linear)]
    assert projected
    assert {(m.in_features, m.out_features) for m in projected} == {(width, 64)}

    parted, votes = LocalStore(tmp_path / "parted"), itertools.count(1)
    with pytest.raises(StageInterrupted, match="after step 7"):  # behind the second cut
        run(stage, store=parted, should_stop=lambda: next(votes) >= 7)
    run(stage, store=parted)
    weights = [(s.fetch(f"stages/{stage.digest}") / "model.safetensors").read_bytes() for s in (store, parted)]
    assert weights[0] == weights[1]


def test_two_workers_prune_alike(make_stage, run, tmp_path):
    strategies = (pruning(steps=2, recover_epochs=1, what=EVERYTHING),)
    data = Sample(kind="sample", limit_train=48, limit_val=20)
    stage = make_stage(strategies=strategies, epochs=2, batch_size=24, micro_batch=6, data=data)
    file = tmp_path / "stage.json"
    file.write_text(stage.model_dump_json())
    common = [sys.executable, SCRIPT, file, tmp_path / "two", tmp_path / "scratch2", "0"]
    processes = [
        subprocess.Popen([*common, str(rank), "2", tmp_path / "meet"], env=os.environ | {"PYTHONPATH": str(ROOT)})
        for rank in range(2)
    ]
    one = LocalStore(tmp_path / "one")
    run(stage, store=one)
    assert [process.wait(120) for process in processes] == [0, 0]
    alone, together = kept(one, stage), kept(LocalStore(tmp_path / "two"), stage)
    assert together.shapes == alone.shapes
    for name, tensor in alone.network_state().items():
        torch.testing.assert_close(together.network_state()[name], tensor, atol=2e-3, rtol=0)


@pytest.fixture
def running(make_stage, store) -> Running:
    """A network with everything that follows its shapes, one step trained."""
    strategies = (pruning(what=(*EVERYTHING[1:], "head_width"), steps=2), config("early_exit", blocks=(0,)))
    stage = make_stage(strategies=strategies, ema=0.5)
    made = Running(stage, assemble(stage, store, torch.device("cpu")), WorkerGroup(WorkerContext()), 10)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in made.student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    loss_of(made.student, torch.randn(4, 1, 28, 28), torch.tensor([0, 3, 9, 2])).backward()
    made.optimizer.step()
    made.ema.update(made.student, step=1)
    return made


def loss_of(student, images, labels):
    out = student(images)
    return sum(nn.functional.cross_entropy(logits, labels) for logits in (out.logits, *out.exits.values()))


def known(student, images=None, labels=None):
    images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(5)) if images is None else images
    labels = torch.tensor([1, 0, 7, 7]) if labels is None else labels
    group = WorkerGroup(WorkerContext())
    return gradients_over(student, [(images, labels)], lambda *b: loss_of(student, *b), group)


def test_weights_average_and_optimiser_follow_the_cut(running):
    before, optimizer = copy.deepcopy(running.student), running.optimizer
    average = {k: v.clone() for k, v in running.ema.module.state_dict().items()}
    by_name = {name: optimizer.state[p] for name, p in running.student.named_parameters()}
    cut = running.strategies[0].cut(running.student, running.networks.facts, 0, known(running.student))
    running.cut_at(0, lambda _: known(before))
    assert running.student.shapes == cut.shapes
    assert (cut.shapes.embed_dim, cut.shapes.head_dim, len(cut.stays)) == (40, 16, 3) or cut.shapes.embed_dim == 40

    # The timm network is what cutting it in place gives.
    alone = copy.deepcopy(before)
    apply(alone.model, axes_of(alone), cut)
    assert running.student.model.state_dict().keys() == alone.model.state_dict().keys()
    for name, tensor in alone.model.state_dict().items():
        torch.testing.assert_close(running.student.model.state_dict()[name], tensor)

    # The strategies' modules, the average and the optimiser keep the same channels.
    index = cut.keep[EMBED]
    head = next(n for n, p in before.extras.named_parameters() if p.shape == (10, 48))
    torch.testing.assert_close(
        dict(running.student.extras.named_parameters())[head], dict(before.extras.named_parameters())[head][:, index]
    )
    torch.testing.assert_close(
        running.ema.module.state_dict()["model.cls_token"], average["model.cls_token"][:, :, index]
    )
    state = running.optimizer.state[dict(running.student.named_parameters())["model.pos_embed"]]
    torch.testing.assert_close(state["exp_avg"], by_name["model.pos_embed"]["exp_avg"][:, :, index])
    assert state["step"] == 1
    assert all(p.shape == running.optimizer.state[p]["exp_avg"].shape for p in running.student.parameters())
    assert running.student.training


def test_gradients_are_those_of_the_mean_loss_and_leave_no_trace(running):
    student = running.student
    images, labels = torch.randn(6, 1, 28, 28), torch.tensor([0, 1, 2, 3, 4, 5])
    found = gradients_over(
        student,
        [(images[:2], labels[:2]), (images[2:4], labels[2:4]), (images[4:], labels[4:])],
        lambda *batch: loss_of(student, *batch),
        WorkerGroup(WorkerContext()),
    )
    squares = []
    for i in (0, 2, 4):
        student.zero_grad()
        loss_of(student, images[i : i + 2], labels[i : i + 2]).backward()
        squares.append(student.model.head.weight.grad.square())
    student.zero_grad()
    loss_of(student, images, labels).backward()
    for name, parameter in student.model.named_parameters():
        torch.testing.assert_close(found.mean[name], parameter.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.square["head.weight"], torch.stack(squares).mean(0), atol=1e-7, rtol=1e-4)
