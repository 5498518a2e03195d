"""Secrets: refused in specs, hidden in what is said, and in no file or output of a whole experiment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.exits import ending
from specs.load import load
from specs.problems import SpecProblems
from specs.secrets import HIDDEN, redact, secret_in, secret_name
from strategies import registry

ROOT = Path(__file__).resolve().parents[2]
SPEC: dict[str, Any] = {
    "name": "tiny",
    "data": {"kind": "sample"},
    "student": {"model": "vit_tiny_patch16_224"},
    "stages": [{"name": "train"}],
}
KEY_ID = "AKIA" + "IOSFODNN7EXAMPLE"  # in two parts, so that no scanner takes this file for a leak


def refused(path: Path, spec: dict[str, Any], *assignments: str) -> str:
    path.write_text(yaml.safe_dump(spec))
    with pytest.raises(SpecProblems) as problems:
        load(path, assignments, resolver=registry.resolver)
    return str(problems.value)


@pytest.mark.parametrize(
    ("changes", "place", "secret"),
    [
        ({"tracking": {"uri": "https://me:swordfish@host:5000"}}, "tracking.uri", "swordfish"),
        ({"tracking": {"uri": "https://swordfish@host"}}, "tracking.uri", "swordfish"),
        ({"tracking": {"uri": "https://host/?access_token=swordfish"}}, "tracking.uri", "swordfish"),
        ({"storage": {"root": "s3://key:swordfish@bucket/store"}}, "storage.root", "swordfish"),
        ({"data": {"kind": "image_folder", "root": "https://a:swordfish@b/c"}}, "data.root", "swordfish"),
        ({"description": f"made with {KEY_ID}, works"}, "description", KEY_ID),
        ({"matrix": {"axes": {"a": {"strategies": {KEY_ID: []}}}}}, "matrix.axes.a.strategies", KEY_ID),
        (
            {"student": {"model": "vit_tiny_patch16_224", "args": {"x": ["hf_" + "a" * 34]}}},
            "student.args.x.0",
            "a" * 34,
        ),
    ],
)
def test_a_spec_holds_none(tmp_path: Path, changes: dict[str, Any], place: str, secret: str) -> None:
    said = refused(tmp_path / "spec.yaml", SPEC | changes)
    assert place in said
    assert "a spec holds no secrets" in said
    assert "MLFLOW_TRACKING_PASSWORD" in said
    assert secret not in said


def test_nor_does_an_assignment(tmp_path: Path) -> None:
    said = refused(tmp_path / "spec.yaml", SPEC, "tracking.uri=https://me:swordfish@host:5000")
    assert "a spec holds no secrets" in said
    assert "swordfish" not in said


def test_variables_bring_none_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKING_ADDRESS", "https://me:swordfish@host:5000")
    said = refused(tmp_path / "spec.yaml", SPEC | {"tracking": {"uri": "${TRACKING_ADDRESS}"}})
    assert "tracking.uri" in said
    assert "swordfish" not in said
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "swordfish")
    said = refused(tmp_path / "spec.yaml", SPEC | {"storage": {"root": "/data/${MLFLOW_TRACKING_PASSWORD}"}})
    assert "fills in `MLFLOW_TRACKING_PASSWORD`" in said
    assert "swordfish" not in said


def test_what_is_no_secret_is_let_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me@lab")
    spec = SPEC | {
        "description": "Ask vit@example.org; see https://example.org/a@b and AKIA. Tokens?x=1",
        "storage": {"root": "${SCRATCH}/store"},
        "tracking": {"uri": "https://mlflow.example.org:5000/path"},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    document = load(tmp_path / "spec.yaml", resolver=registry.resolver)
    assert document.experiment.storage.root == "/scratch/me@lab/store"


def test_names_of_variables() -> None:
    secret = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD", "my_api_key")
    assert all(secret_name(name) for name in secret)
    harmless = (
        "AWS_REGION",
        "RAY_AUTH_MODE",
        "TOKENIZERS_PARALLELISM",
        "RAY_AUTH_TOKEN_PATH",
        "HOME",
        "MLFLOW_TRACKING_URI",
    )
    assert not any(secret_name(name) for name in harmless)


def test_redaction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "open-sesame-1")
    text = f"GET https://u:p@h/x?X-Amz-Signature=abc&y=1 {KEY_ID} open-sesame-1; mail a@b.org"
    hidden = redact(text)
    assert hidden == f"GET https://{HIDDEN}@h/x?X-Amz-Signature={HIDDEN}&y=1 {HIDDEN} {HIDDEN}; mail a@b.org"
    assert redact(hidden) == hidden
    assert secret_in("nothing") is None


def test_an_internal_error_tells_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "swordfish/swordfish")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def broken() -> None:
        raise RuntimeError("refused: swordfish/swordfish at https://me:hunter2@host")

    assert ending(broken) == 70
    (traceback,) = tmp_path.iterdir()
    for text in (capsys.readouterr().err, traceback.read_text()):
        assert "swordfish" not in text
        assert "hunter2" not in text
        assert "refused: ***" in text


LEAKY = """
import os
from typing import ClassVar, Literal
from specs.strategy import StrategyConfig
from strategies.api import Strategy

class LeakyConfig(StrategyConfig):
    name: Literal["leaky"] = "leaky"

class Leaky(Strategy[LeakyConfig]):
    '''Fails in a worker, and says more than it should.'''
    kind = "component"
    paper = "none"
    neutral: ClassVar = {}
    examples = ({},)
    Config = LeakyConfig

    def wrap(self, student, facts):
        secrets = [os.environ[n] for n in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "DATABASE_ADDRESS")]
        raise RuntimeError("no connection with " + " ".join(secrets))
"""
EXPERIMENT = """
name: tiny
data: {kind: sample, name: mnist5k, limit_train: 64, limit_val: 20}
student: {model: vit_tiny_patch16_224, args: {patch_size: 7, embed_dim: 24, depth: 1, num_heads: 2}}
stages:
  - {name: train, training: {epochs: 1, batch_size: 32}}
matrix: {axes: {leak: {strategies: {none: [], leaky: [{name: leaky}]}}}}
measurement: {batch_sizes: [1], seconds: 0.05, images: 4}
storage: {root: "${SCRATCH_FOLDER}/store"}
"""
SECRETS = {
    "AWS_ACCESS_KEY_ID": KEY_ID,
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCY5EXAMPLE1",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEJr/session/0123456789",
    "MLFLOW_TRACKING_USERNAME": "somebody",
    "MLFLOW_TRACKING_PASSWORD": "correct-horse-battery",
    "MLFLOW_TRACKING_TOKEN": "staple-0123456789abcdef",
    "DATABASE_ADDRESS": "postgresql://slimvit:rosebud-42@db.example.org/mlflow",
}
WORDS = [SECRETS[n] for n in SECRETS if n not in ("MLFLOW_TRACKING_USERNAME", "DATABASE_ADDRESS")] + ["rosebud-42"]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's sockets need a short path, and its logs shall be searched too."""
    folder = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_whole_experiment_leaks_none(short_folder: Path) -> None:
    """The real commands with secrets in the environment, and a strategy that puts them into its error."""
    work, site = short_folder / "work", short_folder / "site"
    for folder in (work, site / "leaky-1.dist-info", short_folder / "home"):
        folder.mkdir(parents=True)
    (site / "leaky.py").write_text(LEAKY)
    (site / "leaky-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: leaky\nVersion: 1\n")
    (site / "leaky-1.dist-info" / "entry_points.txt").write_text("[slimvit.strategies]\nleaky = leaky:Leaky\n")
    (work / "spec.yaml").write_text(EXPERIMENT)
    environment = {
        **os.environ,
        **SECRETS,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(site))),
        "HOME": str(short_folder / "home"),
        "TMPDIR": str(short_folder),
        "SCRATCH_FOLDER": str(work),
        "COLUMNS": "200",
    }

    def slimvit(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "orchestrator.cli", *arguments]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=600)
        assert not [word for word in WORDS if word in done.stdout + done.stderr], textwrap.shorten(done.stderr, 500)
        return done

    assert slimvit("plan", "spec.yaml").returncode == 0
    assert slimvit("plan", "spec.yaml", "--set", "tracking.uri=${DATABASE_ADDRESS}").returncode == 2
    run = slimvit("run", "spec.yaml", "--plain")
    assert run.returncode == 6, run.stdout + run.stderr
    assert "no connection with ***" in run.stdout + run.stderr, "the failure is told, without the secrets"
    assert slimvit("compare", "spec.yaml").returncode == 0
    for form in ("json", "html"):
        assert slimvit("compare", "spec.yaml", "--format", form).returncode == 0

    searched = [path for path in short_folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {"mlflow.db", "tiny.html", "plan.json", "spec.yaml"} <= {path.name for path in searched}
    leaks = [(path, word) for path in searched for word in WORDS if word.encode() in path.read_bytes()]
    assert leaks == []
