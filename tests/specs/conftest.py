"""A spec that is right, and ways to make it wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from specs.load import Problem, SpecDocument, SpecProblems, load
from strategies import registry

GOOD = """\
name: demo
data: {kind: sample}
student:
  model: vit_tiny_patch16_224
  args: {patch_size: 4, depth: 4}
stages:
  - name: teacher
    training: {epochs: 2, optimizer: {lr: 1e-3}}
  - name: student
    teacher: {stage: teacher}
    strategies: [{name: response, temperature: 4.0}]
    training:
      epochs: 3
      batch_size: 32
matrix:
  axes:
    merging:
      strategies:
        none: []
        r2: [{name: token_merging, r: 2}]
    lr: {path: stages.student.training.optimizer.lr, values: [1e-3, 2e-3]}
    seed: {seeds: [0, 1]}
  exclude:
    - {merging: r2, lr: 0.002}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., Path]:
    """Writes a spec file: the good one, with some of its text replaced."""

    def write(*changes: tuple[str, str], text: str = GOOD, name: str = "spec.yaml") -> Path:
        for old, new in changes:
            assert old in text, f"{old!r} is not in the spec"
            text = text.replace(old, new, 1)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def read() -> Callable[..., SpecDocument]:
    """Loads a file, with any `--set` assignments, and with the installed strategies."""
    return lambda path, *assignments: load(path, assignments, resolver=registry.resolver)


@pytest.fixture
def problems_of(read: Callable[..., SpecDocument]) -> Callable[..., tuple[Problem, ...]]:
    """Everything that is wrong with a file."""

    def problems(path: Path, *assignments: str) -> tuple[Problem, ...]:
        with pytest.raises(SpecProblems) as caught:
            read(path, *assignments)
        text = str(caught.value)
        assert all(str(problem) in text for problem in caught.value.problems)
        return caught.value.problems

    return problems
