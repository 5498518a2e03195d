"""Every mistake is reported at its place, in plain words, with the nearest name and the way out."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from specs.load import Location, Problem, SpecDocument, SpecProblems

Write = Callable[..., Path]
Read = Callable[..., SpecDocument]
Problems = Callable[..., tuple[Problem, ...]]

# (old text, new text, line, path, part of the message, nearest name)
MISTAKES = [
    ("name: demo", "nam: demo", 1, "nam", "unknown key `nam`", "name"),
    ("name: demo", "name: my demo", 1, "name", "`my demo`", None),
    ("name: demo", "name: 3", 1, "name", "must be text, but is `3`", None),
    ("kind: sample", "kind: sampel", 2, "data.kind", "must be one of `image_folder`", "sample"),
    ("{kind: sample}", "{name: mnist5k}", 2, "data", "`kind` is missing", None),
    ("kind: sample}", "kind: sample, image_sise: 28}", 2, "data.image_sise", "unknown key", "image_size"),
    ("kind: sample", "kind: image_folder", 2, "data.root", "`root` is missing", None),
    ("kind: sample}", "kind: sample, mean: [1, a]}", 2, "data.mean.1", "must be a number", None),
    ("kind: sample}", "kind: sample, crop_pct: 1.5}", 2, "data.crop_pct", "must be at most 1", None),
    ("{kind: sample}", "mnist", 2, "data", "must be a mapping, but is the text `mnist`", None),
    ("  model: vit", "  modl: vit", 4, "student.modl", "unknown key", "model"),
    ("kind: sample}", "kind: sample, std: [0.0]}", 2, "data.std.0", "must be greater than 0", None),
    ("kind: sample}", "kind: sample, mean: [0.1, 0.2]}", 2, "data", "`mean` has 2 values and `std` 1", None),
    ("epochs: 2,", "augmentation: {crop_scale: [1, 0.1]},", 8, "stages.0.training.augmentation", "`crop_scale`", None),
    ("lr: 1e-3}", "betas: [0.9, 1]}", 8, "stages.0.training.optimizer.betas.1", "must be less than 1", None),
    ("epochs: 2,", "epochs: two,", 8, "stages.0.training.epochs", "whole number, but is the text `two`", None),
    ("epochs: 2,", "epochs: 2.5,", 8, "stages.0.training.epochs", "must be a whole number", None),
    ("epochs: 2,", "epochs: -2,", 8, "stages.0.training.epochs", "must be at least 0, but is `-2`", None),
    ("epochs: 2,", "epochs:,", 8, "stages.0.training.epochs", "but is `null`", None),
    ("lr: 1e-3}", 'lr: "1e-3"}', 8, "stages.0.training.optimizer.lr", "must be a number", None),
    ("lr: 1e-3}", "name: adam}", 8, "stages.0.training.optimizer.name", "must be one of `adamw`", "adamw"),
    ("epochs: 2,", "lr: 1e-3,", 8, "stages.0.training.lr", "unknown key `lr`", "optimizer.lr"),
    ("epochs: 2,", "compile: yes,", 8, "stages.0.training.compile", "must be `true` or `false`", None),
    ("name: student", "name: teacher", 9, "stages.1.name", "two stages are named `teacher`", None),
    ("stage: teacher}", "stage: teachr}", 10, "stages.1.teacher.stage", "there is no stage `teachr`", "teacher"),
    ("stage: teacher}", "stage: student}", 10, "stages.1.teacher.stage", "is not before this stage", None),
    ("{stage: teacher}", "{}", 10, "stages.1.teacher", "needs one of `stage`", None),
    ("name: response", "name: respons", 11, "stages.1.strategies.0.name", "no strategy `respons`", "response"),
    ("name: response, ", "", 11, "stages.1.strategies.0", "a strategy is a mapping with a `name`", None),
    ("temperature: 4.0", "temprature: 4.0", 11, "stages.1.strategies.0.temprature", "unknown key", "temperature"),
    ("temperature: 4.0", "temperature: 0", 11, "stages.1.strategies.0.temperature", "greater than 0", None),
    ("batch_size: 32", "batch_size: 32\n      micro_batch: 5", 12, "stages.1.training", "no multiple of", None),
    ("batch_size: 32", "batch_size: 32\n      batch_size: 64", 15, "stages.1.training.batch_size", "twice", None),
    ("seeds: [0, 1]", "seeds: [0, -1]", 22, "matrix.axes.seed.seeds.1", "must be at least 0", None),
    (
        "seeds: [0, 1]}",
        "seeds: [0]}\n    more: {seeds: [1]}",
        15,
        "matrix",
        "`seed` and `more` are axes of seeds",
        None,
    ),
    ("r: 2", "r: fast", 20, "matrix.axes.merging.strategies.r2.0.r", "a whole number or a list", None),
    ("r: 2", "r: [1, -1]", 20, "matrix.axes.merging.strategies.r2.0.r.1", "must be at least 0", None),
    ("        r2: [", "        r 2: [", 20, "matrix.axes.merging.strategies.r 2", "characters", None),
    ("optimizer.lr, v", "optimzer.lr, v", 21, "matrix.axes.lr.path", "unknown key `optimzer`", "optimizer"),
    (
        "student.training.optimizer.lr, v",
        "studnt.training.optimizer.lr, v",
        21,
        "matrix.axes.lr.path",
        "no entry",
        "student",
    ),
    ("2e-3]", "fast]", 21, "matrix.axes.lr.values.1", "must be a number", None),
    ("2e-3]", "0.001]", 21, "matrix.axes.lr.values.1", "`0.001` occurs twice", None),
    (
        "path: stages.student.training.optimizer.lr",
        "path: storage.root",
        21,
        "matrix.axes.lr.path",
        "the same for all",
        None,
    ),
    ("seeds: [0, 1]", "stage: student, seeds: [0]", 22, "matrix.axes.seed", "`stage` goes with `strategies`", None),
    ("seeds: [0, 1]", "seeds: []", 22, "matrix.axes.seed", "`seeds` is empty", None),
    ("merging: r2, lr", "mergin: r2, lr", 24, "matrix.exclude.0.mergin", "no axis `mergin`", "merging"),
    ("merging: r2, lr", "merging: r22, lr", 24, "matrix.exclude.0.merging", "has no label `r22`", "r2"),
    (
        "exclude:\n    - {merging: r2, lr: 0.002}",
        "include:\n    - {merging: r2}",
        24,
        "matrix.include.0",
        "says nothing of `lr`",
        None,
    ),
    (
        "      strategies:\n        none",
        "      stage: pupil\n      strategies:\n        none",
        18,
        "matrix.axes.merging.stage",
        "no stage `pupil`",
        None,
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: f"{mistake[3]}: {mistake[4]}"[:70])
def test_each_mistake_is_located(
    mistake: tuple[str, str, int, str, str, str | None], spec: Write, problems_of: Problems
) -> None:
    old, new, line, path, message, nearest = mistake
    file = spec((old, new))
    found = [problem for problem in problems_of(file) if problem.path == path]
    assert found, f"nothing is reported at {path}: {problems_of(file)}"
    assert message in found[0].message
    assert (found[0].file, found[0].line) == (str(file), line)
    assert found[0].nearest == nearest
    assert found[0].nearest or found[0].way_out or path == "stages.1.training" or "`" in found[0].message


def test_the_good_spec_loads(spec: Write, read: Read) -> None:
    document = read(spec())
    experiment = document.experiment
    assert experiment.stages[0].training.optimizer.lr == 1e-3
    assert experiment.stages[1].strategies[0].model_dump()["temperature"] == 4.0
    assert document.data["stages"][1]["training"] == {"epochs": 3, "batch_size": 32}
    assert document.locate(("stages", 1, "training", "batch_size")).line == 14
    assert document.locate(("stages", 1, "training", "precision")).line == 12, "nearest ancestor that is written down"


def test_all_problems_come_at_once_in_the_order_of_the_file(spec: Write, problems_of: Problems) -> None:
    path = spec(
        ("name: demo", "nam: demo"),
        ("epochs: 2", "epochs: two"),
        ("stage: teacher", "stage: teachr"),
        ("name: response", "name: respons"),
        ("merging: r2, lr", "mergin: r2, lr"),
    )
    found = problems_of(path)
    assert [(p.line, p.path) for p in found] == [
        (1, "name"),
        (1, "nam"),
        (8, "stages.0.training.epochs"),
        (10, "stages.1.teacher.stage"),
        (11, "stages.1.strategies.0.name"),
        (24, "matrix.exclude.0.mergin"),
    ]


def test_a_misplaced_key_is_sent_to_where_it_belongs(spec: Write, problems_of: Problems) -> None:
    (found,) = problems_of(spec(("name: demo", "name: demo\nworkers: 2")))
    assert found.nearest == "resources.workers"
    (found,) = problems_of(spec(("epochs: 2,", "gpus_per_worker: 2,")))
    assert "`resources.gpus_per_worker`" in found.way_out


def test_quoted_numbers_and_old_switches_have_a_way_out(spec: Write, problems_of: Problems) -> None:
    (found,) = problems_of(spec(("lr: 1e-3}", 'lr: "1e-3"}')))
    assert "Remove the quotes" in found.way_out
    (found,) = problems_of(spec(("epochs: 2,", "compile: on,")))
    assert "Write `true`" in found.way_out


def test_set_overrides_by_index_and_by_name(spec: Write, read: Read) -> None:
    document = read(
        spec(),
        "stages.0.training.epochs=5",
        "stages.student.training.optimizer.lr=1e-4",
        "stages.student.strategies.response={name: response, alpha: 0.25}",
        "student.pretrained=true",
    )
    first, second = document.experiment.stages
    assert (first.training.epochs, second.training.optimizer.lr) == (5, 1e-4)
    assert second.strategies[0].model_dump()["alpha"] == 0.25
    assert document.experiment.student.pretrained
    assert document.locate(("stages", 0, "training", "epochs")) == Location("--set stages.0.training.epochs=5")
    assert document.locate(("stages", 0, "training")).line == 8


@pytest.mark.parametrize(
    ("assignment", "message", "nearest"),
    [
        ("stages.0.training.epochs=many", "must be a whole number", None),
        ("stages.0.training.epoch=3", "unknown key `epoch`", "epochs"),
        ("stages.techer.training.epochs=3", "no entry named `techer`", "teacher"),
        ("stages.7.training.epochs=3", "has entries 0 to 1, not 7", None),
        ("name.first=3", "is text and has no `first` inside", None),
        ("stages..epochs=3", "is no path", None),
        ("stages.0.training.epochs", "is no assignment", None),
        ("stages.0.training.epochs=[1", "is not valid YAML", None),
        ("measurement.images=0", "must be greater than 0", None),
        ("tracking.uri=mlruns", "is no tracking address", None),
    ],
)
def test_mistakes_in_set_name_the_assignment(
    assignment: str, message: str, nearest: str | None, spec: Write, problems_of: Problems
) -> None:
    (found,) = problems_of(spec(), assignment)
    assert (found.file, found.line) == (f"--set {assignment}", None)
    assert message in found.message
    assert found.nearest == nearest


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (b"", None, "is empty"),
        (b"# nothing\n", None, "is empty"),
        (b"- a\n- b\n", 1, "holds a list"),
        (b"just text\n", 1, "holds a single value"),
        (b"name: a\nname2: \xff\n", 2, "is not UTF-8"),
        (b"name: a\nstages: [1, 2\n", 3, "is not valid YAML"),
        (b"name: a\n\tdata: b\n", 2, "is not valid YAML"),
        (b"name: a\n---\nname: b\n", 2, "expected a single document"),
        (b"name: *x\n", 1, "undefined alias"),
        (b"name: a\x07b\n", 1, "YAML forbids"),
        (b"name: .inf\n", 1, "is not a finite number"),
        (b"seed: 99999999999999999999\n", 1, "does not fit 64 bits"),
        (b"name: !!python/name:os.system x\n", 1, "tag"),
        (b"student: &a {model: x, args: *a}\n", 1, "contains itself"),
        (b"<<: {a: 1}\n", 1, "`<<` is not part of YAML 1.2"),
        (b"? [a, b]\n: c\n", 1, "a key is a list"),
        (b'name: "\\ud800"\n', 1, "surrogate"),
        (b"a: " + b"[" * 2000, None, "nested too deeply"),
        (
            b"".join(
                b"k%d: &k%d [%s]\n" % (i, i, b",".join([b"*k%d" % (i - 1)] * 9)) if i else b"k0: &k0 [x]\n"
                for i in range(9)
            ),
            None,
            "aliases expand",
        ),
    ],
)
def test_unreadable_files(
    content: bytes, line: int | None, message: str, tmp_path: Path, problems_of: Problems
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    found = [problem for problem in problems_of(path) if message in problem.message]
    assert found, problems_of(path)
    assert found[0].file == str(path)
    assert line is None or found[0].line == line


def test_files_that_are_none(tmp_path: Path, spec: Write, problems_of: Problems) -> None:
    spec()
    (found,) = problems_of(tmp_path / "spce.yaml")
    assert found.message == "does not exist"
    assert found.nearest == str(tmp_path / "spec.yaml")
    (found,) = problems_of(tmp_path / "no" / "spec.yaml")
    assert "neither does its folder" in found.message
    (found,) = problems_of(tmp_path)
    assert found.message == "is a folder"


def test_yaml_is_version_1_2(spec: Write, read: Read) -> None:
    args = "args: {a: 1e-3, b: on, c: yes, d: 2024-01-01, e: 0o17, f: 0x1F, g: 1_000, h: 012, i: ~, j: 1:30, on: x}"
    document = read(spec(("args: {patch_size: 4, depth: 4}", args)))
    assert document.experiment.student.args == {
        "a": 1e-3, "b": "on", "c": "yes", "d": "2024-01-01", "e": 15, "f": 31, "g": "1_000", "h": 12, "i": None,
        "j": "1:30", "on": "x",
    }  # fmt: skip


def test_variables_and_home_are_filled_in(
    spec: Write, read: Read, problems_of: Problems, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = spec(
        ("{kind: sample}", "{kind: image_folder, root: '${IMAGES}/net'}"),
        ("name: demo", "name: demo\nstorage: {root: ~/store}\ntracking: {uri: 'sqlite:///~/mlflow.db'}"),
    )
    monkeypatch.delenv("IMAGES", raising=False)
    monkeypatch.setenv("IMAGE", "x")
    (found,) = problems_of(path)
    assert (found.path, found.line, found.nearest) == ("data.root", 4, "IMAGE")
    assert "`IMAGES` is not set" in found.message
    monkeypatch.setenv("IMAGES", "/big")
    experiment = read(path).experiment
    assert experiment.data.model_dump()["root"] == "/big/net"
    assert experiment.storage.root == os.path.expanduser("~/store")
    assert experiment.tracking.uri == "sqlite:///" + os.path.expanduser("~/mlflow.db")


def test_problems_survive_pickling(spec: Write, problems_of: Problems) -> None:
    error = SpecProblems(problems_of(spec(("name: demo", "nam: demo"))))
    again = pickle.loads(pickle.dumps(error))
    assert again.problems == error.problems
    assert str(again) == str(error)
