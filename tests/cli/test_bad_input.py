"""What users get wrong, through the command itself: a message with the way out, its exit code, nothing half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from orchestrator import cli
from orchestrator.exits import ending
from orchestrator.planning.make import make_plan
from orchestrator.run import commit_plan
from orchestrator.spec_commands import load_spec
from orchestrator.storage import open_store

SPEC: dict[str, Any] = {
    "name": "tiny",
    "data": {"kind": "sample"},
    "student": {
        "model": "vit_tiny_patch16_224",
        "args": {"patch_size": 7, "embed_dim": 24, "depth": 2, "num_heads": 2},
    },
    "stages": [{"name": "train"}],
    "matrix": {"axes": {"merging": {"strategies": {"none": [], "r2": [{"name": "token_merging", "r": 2}]}}}},
}


class Shell:
    """A folder in which commands are run."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capture = folder, capture

    def refuses(self, *arguments: str, code: int) -> str:
        """Run a command that must end with this code and a message alone; returns the message."""
        before = self.files()
        self._capture.readouterr()
        found = ending(lambda: cli.app(list(arguments), prog_name="slimvit", standalone_mode=False))
        said = self._capture.readouterr()
        assert found == code, said.err
        assert "Traceback" not in said.err
        assert "internal error" not in said.err
        assert self.files() == before, "nothing half-written"
        return said.err

    def files(self) -> set[Path]:
        return set(self.folder.rglob("*"))

    def spec(self, **changes: Any) -> Path:
        path = self.folder / "spec.yaml"
        path.write_text(yaml.safe_dump({**SPEC, **changes}), encoding="utf-8")
        return path

    def plan_kept(self) -> None:
        """An experiment that was begun and of which nothing is finished."""
        document = load_spec(self.spec(), [])
        commit_plan(make_plan(document), document.experiment, open_store("slimvit-store"))


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path, capsys)


EXPORT = ("export", "tiny", "merging=r2", "--format", "safetensors")


@pytest.mark.parametrize("command", [("compare", "tiny"), ("measure", "tiny"), EXPORT])
def test_an_experiment_of_which_nothing_is_finished(shell: Shell, command: tuple[str, ...]) -> None:
    shell.plan_kept()
    said = shell.refuses(*command, code=2)
    assert str(shell.folder / "slimvit-store") in said
    assert "slimvit run" in said


@pytest.mark.parametrize("command", [("compare", "tny"), ("measure", "tny"), ("export", "tny", *EXPORT[2:])])
def test_an_experiment_that_nobody_knows(shell: Shell, command: tuple[str, ...]) -> None:
    assert "It has none" in shell.refuses(*command, code=2)
    shell.plan_kept()
    assert "did you mean `tiny`?" in shell.refuses(*command, code=2)


@pytest.mark.parametrize(
    "command",
    [
        ("plan", "spec.yaml"),
        ("compare", "spec.yaml"),
        ("compare", "tiny"),
        ("measure", "spec.yaml"),
        ("measure", "tiny"),
    ],
)
def test_a_store_that_is_a_file(shell: Shell, command: tuple[str, ...]) -> None:
    shell.spec()
    (shell.folder / "slimvit-store").write_text("")
    said = shell.refuses(*command, code=4)
    assert f"`{shell.folder / 'slimvit-store'}` is a file" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--conditions", "thread=2"], ["unknown key `thread`", "did you mean `threads`?"]),
        (["--conditions", "precision=bf15"], ["`fp32`, `bf16`, `fp16`", "did you mean `bf16`?"]),
        (["--conditions", "threads"], ["--conditions KEY=VALUE"]),
        (["--conditions", "threads=1,threads=2"], ["`threads` is given twice"]),
        (["--combination", "merging=r3"], ["did you mean `merging=r2`?"]),
        (["--device", "cpu"], ["`--device` goes with `--model`", "`--conditions KEY=VALUE,…`"]),
        (["--model", "deit_tiny_patch16_224"], ["either an experiment or a network"]),
    ],
)
def test_measuring_an_experiment_otherwise_than_it_can_be(shell: Shell, arguments: list[str], says: list[str]) -> None:
    shell.plan_kept()
    said = shell.refuses("measure", "tiny", *arguments, code=2)
    assert all(words in said for words in says), said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], ["either an experiment or a network"]),
        (["--model", "deit_tiny_patch16_224", "--combination", "x"], ["`--combination` goes with an experiment"]),
        (["--model", "deit_tiny_patch16_224", "--only", "top1"], ["come from training", "slimvit compare"]),
        (["--model", "deit_tiny_patch16_224", "--only", "energie"], ["there is no `energie`", "did you mean `energy_"]),
    ],
)
def test_measuring_a_network_otherwise_than_it_can_be(shell: Shell, arguments: list[str], says: list[str]) -> None:
    said = shell.refuses("measure", *arguments, code=2)
    assert all(words in said for words in says), said


@pytest.mark.parametrize("content", ["", '{"files": ', '{"files": []}', '{"files": {"plan.json": 3}}', "\xff"])
@pytest.mark.parametrize("command", [("compare", "tiny"), ("measure", "tiny"), EXPORT])
def test_a_marker_that_is_cut_off(shell: Shell, command: tuple[str, ...], content: str) -> None:
    shell.plan_kept()
    (marker,) = shell.folder.glob("slimvit-store/plans/tiny/*/COMMIT.json")
    marker.write_bytes(content.encode("latin-1"))
    said = shell.refuses(*command, code=4)
    assert f"Delete `{marker.parent}`" in said


@pytest.mark.parametrize("command", [("compare", "tiny"), EXPORT, ("explain", "spec.yaml", "train[merging=none]")])
def test_a_damaged_stage_names_a_way_out_that_is_one(shell: Shell, command: tuple[str, ...]) -> None:
    shell.plan_kept()
    plan = make_plan(load_spec(shell.folder / "spec.yaml", []))
    folder = shell.folder / "slimvit-store" / "stages" / plan.combinations[-1].result
    folder.mkdir(parents=True)
    (folder / "COMMIT.json").write_text('{"files": {"stage.json": {"sha256": "0", "size": 5}, "result.json": ')
    said = shell.refuses(*command, code=4)
    assert f"Delete the folder `{folder}`; `slimvit run` computes what it held anew" in said


def test_a_data_set_with_one_class(shell: Shell) -> None:
    for split in ("train", "val"):
        (shell.folder / split / "cat").mkdir(parents=True)
        Image.new("RGB", (28, 28)).save(shell.folder / split / "cat" / "1.png")
    shell.spec(data={"kind": "image_folder", "root": str(shell.folder), "image_size": 28})
    assert "at least two are needed" in shell.refuses("run", "spec.yaml", code=3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"resources": {"gpus_per_worker": 1.5}}, ["resources.gpus_per_worker", "write 2"]),
        ({"stages": [{"name": "train", "training": {"batch_size": 5000}}]}, ["more than the 4000 training images"]),
        (
            {"stages": [{"name": "train", "training": {"augmentation": {"auto_augment": "rnad-m9"}}}]},
            ["auto_augment", "timm has no policy `rnad-m9`", "`rand-m9-mstd0.5-inc1`"],
        ),
        (
            {"measurement": {"baseline": {"model": "deit_tiny_patch16_224", "args": {"patch_size": 5}}}},
            ["`measurement.baseline`", "patches of 5 px", "`patch_size` 4"],
        ),
        ({"student": {**SPEC["student"], "pretrained": True}}, ["another network than theirs", "`pretrained: false`"]),
    ],
)
def test_what_could_only_fail_late_is_refused_at_once(shell: Shell, changes: dict[str, Any], says: list[str]) -> None:
    shell.spec(**changes)
    said = shell.refuses("plan", "spec.yaml", code=2)
    assert all(words in said for words in says), said


def test_workers_that_cannot_share_a_batch_are_refused_by_run_alone(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.spec(resources={"workers": 3})
    assert "64 cannot be shared by 3 workers" in shell.refuses("run", "spec.yaml", code=2)
    assert ending(lambda: cli.app(["plan", "spec.yaml"], standalone_mode=False)) == 0
    assert "64 cannot be shared by 3 workers" in capsys.readouterr().out
