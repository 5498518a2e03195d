"""A search is checked whole before anything is proposed: space, objectives, schedulers, and how they fit the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from specs.load import Problem, SpecDocument
from specs.search import Dimension, SearchSpec

SEARCH = """\
name: demo
data: {kind: sample}
student:
  model: vit_tiny_patch16_224
  args: {patch_size: 4, depth: 4}
stages:
  - name: teacher
  - name: student
    teacher: {stage: teacher}
    strategies: [{name: token_merging, r: 2}]
    training: {epochs: 9}
matrix:
  axes:
    distill: {strategies: {none: [], soft: [{name: response}]}}
search:
  algorithm: optuna
  trials: 8
  space:
    stages.student.training.optimizer.lr: {loguniform: [1e-5, 1e-2]}
    stages.student.strategies.token_merging.r: {int: [0, 4]}
    stages.student.training.label_smoothing: {values: [0.0, 0.1]}
  objectives: [{metric: top1}, {metric: macs}]
  scheduler: {asha: {grace_epochs: 2}}
"""

LR, R = "search.space.stages.student.training.optimizer.lr", "search.space.stages.student.strategies.token_merging.r"

# (old text, new text, line, path, part of the message)
MISTAKES = [
    ("algorithm: optuna", "algorithm: optun", 16, "search.algorithm", "must be one of `grid`, `random`, `optuna`"),
    ("  trials: 8\n", "", 15, "search", "`trials` is missing"),
    ("trials: 8", "trials: 0", 17, "search.trials", "greater than 0"),
    ("optimizer.lr: {log", "optimizer.lrr: {log", 19, LR + "r", "unknown key `lrr`"),
    ("stages.student.training.optimizer", "stages.studnt.training.optimizer", 19, None, "no entry named `studnt`"),
    ("token_merging.r:", "token_merging.q:", 20, R[:-1] + "q", "unknown key `q`"),
    ("strategies.token_merging.r:", "strategies.early_exit.r:", 20, None, "no entry named `early_exit`"),
    ("[0, 4]", "[-1, 4]", 20, R + ".int.0", "must be at least 0, but is `-1`"),
    ("[0, 4]", "[0.5, 4]", 20, R + ".int.0", "must be a whole number"),
    ("[0, 4]", "[4, 0]", 20, R, "from the smaller to the larger"),
    ("[1e-5, 1e-2]", "[1e-5]", 19, LR + ".loguniform", "needs at least 2 entries"),
    ("loguniform: [1e-5, 1e-2]", "loguniform: [0, 1e-2]", 19, LR + ".loguniform.0", "greater than 0"),
    ("{int: [0, 4]}", "{int: [0, 4], values: [1]}", 20, R, "exactly one of"),
    ("{int: [0, 4]}", "{}", 20, R, "exactly one of"),
    ("values: [0.0, 0.1]", "values: [0.0, 1.5]", 21, None, "must be less than 1"),
    ("values: [0.0, 0.1]", "values: [0.1, 0.1]", 21, None, "occurs twice"),
    (
        "stages.student.training.label_smoothing: {values: [0.0, 0.1]}",
        "name: {values: [a]}",
        21,
        None,
        "is the same for",
    ),
    ("stages.student.training.label_smoothing", "stages.1.training.optimizer.lr", 21, None, "is the same place as"),
    ("metric: macs", "metric: mac", 22, "search.objectives.1.metric", "did you mean `macs`"),
    ("metric: macs", "metric: teacher_share", 22, "search.objectives.1.metric", "is no goal"),
    ("metric: macs", "metric: top1", 15, "search", "an objective occurs twice"),
    ("metric: top1", "metric: top5", 15, "search", "judges by top-1"),
    ("algorithm: optuna", "algorithm: random", 15, "search", "several `objectives` change nothing"),
    ("optuna\n  trials: 8", "grid", 15, "search", "a grid needs `values` or `int`"),
    ("algorithm: optuna", "algorithm: grid", 15, "search", "remove `trials`"),
    ("grace_epochs: 2", "grace_epochs: 9", 23, "search.scheduler.asha.grace_epochs", "trains 9 epochs"),
    ("grace_epochs: 2", "reduction_factor: 1", 23, "search.scheduler.asha.reduction_factor", "greater than 1"),
    ("training.label_smoothing: {values: [0.0, 0.1]}", "training.epochs: {values: [3]}", 21, None, "at the same epoch"),
    (
        "soft: [{name: response}]}}",
        "soft: []}}\n    seed: {seeds: [0, 1]}",
        24,
        "search.scheduler",
        "axis `seed` repeats",
    ),
    (
        "  scheduler: {asha: {grace_epochs: 2}}",
        "  stop_dominated: true",
        23,
        "search.stop_dominated",
        "spread over seeds",
    ),
    ("search:", "  include: [{distill: soft}]\nsearch:", 15, "matrix.include", "are proposed"),
]


@pytest.mark.parametrize(("old", "new", "line", "path", "part"), MISTAKES, ids=[f"{m[1]}"[:40] for m in MISTAKES])
def test_mistakes(
    spec: Callable[..., Path],
    problems_of: Callable[..., tuple[Problem, ...]],
    old: str,
    new: str,
    line: int,
    path: str | None,
    part: str,
) -> None:
    problems = problems_of(spec((old, new), text=SEARCH))
    found = [p for p in problems if part in p.message or part in p.way_out or part in str(p)]
    assert found, f"nothing says {part!r}: {[str(p) for p in problems]}"
    assert found[0].line == line
    assert path is None or found[0].path == path
    if path is not None and not path.startswith("search.space"):
        assert len(problems) == 1, [str(p) for p in problems]


def test_a_good_one(spec: Callable[..., Path], read: Callable[..., SpecDocument]) -> None:
    search = read(spec(text=SEARCH)).experiment.search
    assert isinstance(search, SearchSpec)
    assert [o.higher for o in search.objectives] == [True, False]
    assert list(search.names(["distill"])) == ["lr", "r", "label_smoothing"]


def test_short_names_tell_paths_apart() -> None:
    paths = ["stages.a.training.optimizer.lr", "stages.b.training.optimizer.lr", "stages.b.training.epochs", "seed"]
    search = SearchSpec(algorithm="random", trials=1, space={path: Dimension(values=[1]) for path in paths})
    names = search.names(["epochs"])
    assert names == {
        "a.training.optimizer.lr": paths[0],
        "b.training.optimizer.lr": paths[1],
        "training.epochs": paths[2],
        "seed": paths[3],
    }


@pytest.mark.parametrize(
    ("dimension", "drawn", "used"),
    [
        (Dimension(loguniform=[1e-5, 1e-2]), 0.00123456, 0.001235),
        (Dimension(uniform=[-1, 1]), -0.987654, -0.9877),
        (Dimension(uniform=[0, 1]), 0.0, 0.0),
        (Dimension(uniform=[0.123456, 1]), 0.123457, 0.1235),
        (Dimension(uniform=[0, 0.123456]), 0.1234559, 0.123456),
        (Dimension(uniform=[1000, 20000]), 12345.6, 12350.0),
        (Dimension(values=[0.123456]), 0.123456, 0.123456),
    ],
)
def test_rounding_stays_inside(dimension: Dimension, drawn: float, used: float) -> None:
    assert dimension.rounded(drawn) == used
