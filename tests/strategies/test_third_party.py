"""A strategy from another package: installed for real, found by its entry point, composed, trained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tests" / "fixtures" / "third_party_strategy"

PROGRAM = """
import sys
from strategies import registry
assert "patch_dropout" in registry.names()
assert "patch_dropout" not in registry.builtin_names()
strategy_class = registry.load("patch_dropout")
assert "torch" not in sys.modules
import torch
from strategies.claims import conflicts
from tests.strategies.toys import facts_for, images, step, strategy, student, teacher, toy
labels = torch.tensor([0, 3, 9, 2, 2, 7])
for options in strategy_class.examples:
    acting = strategy("patch_dropout", options)
    network, optimiser_losses = student(toy(), acting), []
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(10):
        optimiser.zero_grad()
        optimiser_losses.append(float(step(network, [acting], images(), labels, teacher()).detach()))
        optimiser.step()
    assert optimiser_losses[-1] < optimiser_losses[0], optimiser_losses
    kept = round(64 * options["keep_rate"]) + 1
    assert network(images()).num_tokens[-1] == kept
    acting.at(network, 1.0)
    with torch.no_grad():
        assert network.eval()(images()).num_tokens == [65] * 4
neutral = student(toy(), strategy("patch_dropout", strategy_class.neutral)).eval()
with torch.no_grad():
    assert torch.equal(neutral(images()).logits, student(toy()).eval()(images()).logits)
pair = [strategy("patch_dropout", {}), strategy("token_merging", {"blocks": [1, 2, 3]})]
assert student(toy(), *pair).train()(images()).num_tokens == [33, 25, 17, 9]
reasons = conflicts([strategy("patch_dropout", {}), strategy("token_merging", {})], facts_for(toy()))
assert len(reasons) == 1 and "at block 0" in reasons[0] and "patch_dropout" in reasons[0], reasons
assert "leaves nothing" in conflicts([strategy("patch_dropout", {}), strategy("feature", {})], facts_for(toy()))[0]
try:
    strategy("patch_dropout", {"block": 4}).claims(facts_for(toy()))
except ValueError as error:
    assert "blocks 0 to 3" in str(error)
else:
    raise AssertionError("block 4 of 4 was accepted")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, installed by pip without network."""
    source = tmp_path_factory.mktemp("source") / PACKAGE.name
    source.mkdir()
    for name in ("pyproject.toml", "patch_dropout.py"):
        (source / name).write_text((PACKAGE / name).read_text())
    target = tmp_path_factory.mktemp("installed")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return target


def test_an_installed_strategy_composes_and_trains(installed: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
