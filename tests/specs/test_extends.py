"""A spec that says only what differs from another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from specs.load import Problem, SpecDocument

Write = Callable[..., Path]
Read = Callable[..., SpecDocument]
Problems = Callable[..., tuple[Problem, ...]]


def test_mappings_merge_and_stages_merge_by_name(spec: Write, read: Read) -> None:
    spec(name="base.yaml")
    text = """\
extends: ../base.yaml
name: child
student: {args: {depth: 6}}
stages:
  - name: assistant
    teacher: {stage: teacher}
  - name: student
    training: {epochs: 9}
  - name: last
"""
    document = read(spec(text=text, name="sub/child.yaml"))
    experiment = document.experiment
    assert experiment.name == "child"
    assert experiment.student.args == {"patch_size": 4, "depth": 6}
    assert [stage.name for stage in experiment.stages] == ["teacher", "assistant", "student", "last"]
    student = experiment.stages[2]
    assert (student.training.epochs, student.training.batch_size) == (9, 32)
    assert student.teacher is not None
    assert Path(document.locate(("stages", 2, "training", "epochs")).file).name == "child.yaml"
    assert document.locate(("stages", 2, "training", "batch_size")) == (
        str(document.path.parent.parent / "base.yaml"),
        14,
    )


def test_lists_and_other_kinds_are_replaced(spec: Write, read: Read) -> None:
    spec(name="base.yaml")
    text = """\
extends: base.yaml
data: {kind: image_folder, root: /images}
stages:
  - name: student
    strategies: [{name: feature}]
matrix: !replace
  axes: {seed: {seeds: [5]}}
"""
    experiment = read(spec(text=text)).experiment
    assert experiment.data.kind == "image_folder"
    assert [strategy.name for strategy in experiment.stages[1].strategies] == ["feature"]
    assert list(experiment.matrix.axes) == ["seed"]


def test_later_specs_win_over_earlier_ones(spec: Write, read: Read) -> None:
    spec(name="base.yaml")
    spec(text="description: first\nseed: 1\n", name="one.yaml")
    spec(text="description: second\n", name="two.yaml")
    experiment = read(spec(text="extends: [base.yaml, one.yaml, two.yaml]\nname: own\n")).experiment
    assert (experiment.name, experiment.description, experiment.seed) == ("own", "second", 1)


def test_null_replaces(spec: Write, read: Read) -> None:
    spec(name="base.yaml")
    text = "extends: base.yaml\nstages: [{name: student, teacher: null}]\n"
    assert read(spec(text=text)).experiment.stages[1].teacher is None


def test_problems_name_the_file_they_are_in(spec: Write, problems_of: Problems, tmp_path: Path) -> None:
    spec(("epochs: 2", "epochs: two"), name="base.yaml")
    path = spec(text="extends: base.yaml\nseed: x\n")
    found = {(Path(p.file).name, p.line, p.path) for p in problems_of(path)}
    assert found == {("base.yaml", 8, "stages.0.training.epochs"), ("spec.yaml", 2, "seed")}


def test_circles_missing_files_and_wrong_forms(spec: Write, problems_of: Problems, tmp_path: Path) -> None:
    spec(text="name: b\nextends: spec.yaml\n", name="b.yaml")
    (found,) = problems_of(spec(text="extends: b.yaml\n"))
    assert "spec.yaml → b.yaml → spec.yaml" in found.message
    assert (Path(found.file).name, found.line) == ("b.yaml", 2)

    (found,) = problems_of(spec(text="name: a\nextends: [b.yml]\n"))
    assert (found.line, found.path, found.nearest) == (2, "extends.0", str(tmp_path / "b.yaml"))

    (found,) = problems_of(spec(text="extends: {a: b}\n"))
    assert "takes the path of a spec" in found.message

    (found,) = problems_of(spec(), "extends=b.yaml")
    assert "stands at the top of a file" in found.way_out


def test_a_broken_base_is_reported_once_and_in_its_own_file(spec: Write, problems_of: Problems) -> None:
    spec(text="name: [\n", name="base.yaml")
    (found,) = problems_of(spec(text="extends: base.yaml\nseed: x\n"))
    assert Path(found.file).name == "base.yaml"
    assert "not valid YAML" in found.message
