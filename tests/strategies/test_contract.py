"""What every registered strategy must do, whoever wrote it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from strategies import registry
from strategies.claims import conflicts
from strategies.facts import Facts
from tests.strategies.toys import VARIANTS, facts_for, images, step, strategy, student, teacher, together, toy

NAMES = registry.names()
EXAMPLES = [(name, i) for name in NAMES for i in range(len(registry.load(name).examples))]
NEUTRAL = [name for name in NAMES if registry.load(name).neutral is not None]
LABELS = torch.tensor([0, 3, 9, 2, 2, 7])


def example(name: str, index: int = 0) -> list[Any]:
    """The strategy, with those that it cannot do without."""
    return together(strategy(name, registry.load(name).examples[index]))


def test_all_strategies_load_and_claim_without_torch() -> None:
    program = f"""
import json, sys
from strategies import registry
from strategies.facts import Facts
from specs.model import ModelSpec
from strategies.catalog import facts_of
facts = facts_of(ModelSpec(**{toy().model_dump()!r}))
for name in registry.names():
    for options in registry.load(name).examples:
        config = registry.resolver(name).model_validate_json(json.dumps(dict(name=name, **options)))
        strategy = registry.build(config)
        assert strategy.claims(Facts(facts, facts)) == strategy.claims(Facts(facts, facts)), name
        strategy.weights()
assert not {{"torch", "timm", "ray", "mlflow"}} & set(sys.modules), set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(name: str) -> None:
    found = registry.load(name)
    assert found.kind in ("component", "dynamic", "distillation")
    assert "arXiv:" in found.paper
    assert found.__doc__
    assert found.examples
    assert found.Config.model_fields["name"].default == name
    assert all(field.description for field in found.Config.model_fields.values()), "every option has a docstring"


@pytest.mark.parametrize(("name", "index"), EXAMPLES)
def test_it_trains_a_step_and_evaluates(name: str, index: int) -> None:
    acting = example(name, index)
    network, guide = student(toy(), *acting), teacher(*acting)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    before = [p.detach().clone() for p in network.parameters()]
    losses = []
    for _ in range(4):
        optimiser.zero_grad()
        losses.append(float(step(network, acting, images(), LABELS, guide).detach()))
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
        optimiser.step()
    assert losses[-1] < losses[0]
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    for each in acting:
        each.at(network, 1.0)
    with torch.no_grad():
        out = network.eval()(images())
    assert out.logits.shape == (6, 10)
    assert torch.isfinite(out.logits).all()
    reported = [item for each in acting for item in each.measure(out).items()]
    assert all(isinstance(k, str) and isinstance(v, float) for k, v in reported)


@pytest.mark.parametrize(("name", "index"), EXAMPLES)
def test_it_trains_under_bf16_autocast(name: str, index: int) -> None:
    acting = example(name, index)
    network, guide = student(toy(), *acting), teacher(*acting)
    with torch.autocast("cpu", torch.bfloat16):
        loss = step(network, acting, images(), LABELS, guide)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(network.eval()(images()).logits).all()


@pytest.mark.parametrize(("name", "index"), EXAMPLES)
def test_its_weights_move_to_a_rebuilt_network(name: str, index: int) -> None:
    acting = example(name, index)
    network = student(toy(), *acting)
    step(network, acting, images(), LABELS, teacher(*acting))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    from strategies.compose import build_model, compose

    again, facts = example(name, index), facts_for(toy()).further(network.shapes)
    rebuilt = compose(build_model(toy(), network.shapes), again, facts, restored=True)
    rebuilt.load_network_state(network.network_state())
    for one in (network, rebuilt):
        for each in acting:
            each.at(one, 1.0)
        one.eval()
    with torch.no_grad():
        assert torch.equal(rebuilt(images()).logits, network(images()).logits)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NEUTRAL)
def test_its_neutral_option_is_the_plain_network(name: str, variant: str) -> None:
    chosen = registry.load(name)
    beside = [strategy(other, registry.load(other).neutral or {}) for other in chosen.beside]
    acting = [strategy(name, chosen.neutral or {}), *beside]
    plain = student(toy(variant)).eval()
    if conflicts(acting, facts_for(toy(variant))):
        pytest.skip(f"{name} refuses {variant}")
    network = student(toy(variant), *acting).eval()
    for each in acting:
        each.at(network, 1.0)
    with torch.no_grad():
        assert torch.equal(network(images()).logits, plain(images()).logits)
    own = {k for k in network.network_state() if not k.startswith("extras.")}
    assert own == plain.network_state().keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_network_without_its_seams_is_refused_or_works(name: str) -> None:
    from specs.model import ModelSpec
    from strategies.catalog import facts_of

    acting = example(name)
    resnet = facts_of(ModelSpec(model="resnet18", args={"num_classes": 10}))
    for reason in conflicts(acting, Facts(resnet, facts_for(toy()).teacher)):
        assert any(each.name in reason for each in acting)
        assert "Way out:" in reason or "allowed:" in reason


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """DDP's gradient is the mean of the halves', every parameter takes part, and all processes stay equal."""
    script = Path(__file__).with_name("ddp_step.py")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(script), str(tmp_path / "rendezvous")]
    workers = [
        subprocess.Popen(
            [*command, str(rank)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        said = [worker.communicate(timeout=200) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], said[0][1] + said[1][1]
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in said)
    assert first.keys() == {f"{name}[{i}]" for name, i in EXAMPLES}
    for name, numbers in first.items():
        assert numbers["gradient_error"] < 1e-5, name
        assert numbers["checksum"] == second[name]["checksum"], name
