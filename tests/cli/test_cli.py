"""The command: what it prints and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import exits
from orchestrator.errors import DataError, Interrupted, PlanError, StageFailed
from orchestrator.exits import ending

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "specs" / "library" / "quickstart.yaml"


def slimvit(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    code = "import sys; from orchestrator.cli import main; sys.argv[0] = 'slimvit'; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_without_arguments_it_shows_help() -> None:
    bare, asked = slimvit(), slimvit("--help")
    assert bare.returncode == asked.returncode == 0
    assert bare.stdout == asked.stdout
    for command in ("run", "plan", "explain", "compare", "export", "measure", "strategies", "schema", "submit", "ui"):
        assert f"\n  {command} " in asked.stdout


def test_help_and_checking_a_spec_load_nothing_heavy() -> None:
    code = (
        "import sys; from pathlib import Path; import orchestrator.cli as cli; from orchestrator.exits import ending; "
        "from orchestrator.spec_commands import load_spec; from typer.main import get_command; "
        "[ending(lambda: cli.app([*name, '--help'], standalone_mode=False)) "
        "for name in ([], *([command] for command in get_command(cli.app).commands))]; "
        "load_spec(Path(sys.argv[1]), []); "
        "sys.exit(', '.join(m for m in ('torch', 'timm', 'ray', 'mlflow', 'numpy') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(QUICKSTART)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu"], ["'rnu'", "'run'"]),
        (["run", "x.yaml", "--plian"], ["--plian", "--plain"]),
        (["run"], ["SPEC", "slimvit run --help"]),
        (["plan", "no/such.yaml"], ["no/such.yaml: does not exist"]),
        (
            ["plan", str(QUICKSTART), "--set", "stages.0.training.epoch=3"],
            ["--set stages.0.training.epoch=3", "`epochs`"],
        ),
        (["strategies", "respons"], ["no strategy `respons`", "`response`"]),
        (["measure", "--model", "vit_tiny_patch16_224", "--only", "param"], ["--only", "`params`"]),
        (["measure", "--model", "vit_tiny_patch16_224", "--strategy", "respons"], ["--strategy respons", "`response`"]),
        (["measure", "--model", "vit_tiny_patch16_224", "--strategy", "response:alfa=1"], ["unknown key", "`alpha`"]),
        (["measure", "--model", "vit_tiny_patch16_224", "--model-arg", "depth"], ["--model-arg depth", "KEY=VALUE"]),
        (["measure", "--model", "vit_tiny_patch16_224", "--device", "gpu"], ["--device", "`cuda`"]),
        (["compare", "x", "--format", "tabel"], ["--format", "`table`"]),
    ],
)
def test_mistakes_end_with_2_and_a_way_out(arguments: list[str], words: list[str]) -> None:
    done = slimvit(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr


def test_strategies_are_listed_and_explained() -> None:
    everything, one = slimvit("strategies"), slimvit("strategies", "token_merging")
    assert all(name in everything.stdout for name in ("token_merging", "response", "structured_pruning"))
    assert "arXiv:2210.09461" in one.stdout
    assert "  inflect: number ≥ -1 and ≤ 1; default 0.0" in one.stdout
    assert "- {name: token_merging, " in one.stdout
    assert "Changes: which tokens exist." in one.stdout
    assert "response" in one.stdout.partition("Combines with")[2].partition("In a spec")[0]
    (machine,) = json.loads(slimvit("strategies", "token_merging", "--json").stdout)
    assert machine["options"]["properties"]["inflect"]["maximum"] == 1


def test_schema_is_json_schema() -> None:
    schema = json.loads(slimvit("schema").stdout)
    assert "token_merging" in schema["$defs"]["AnyStrategy"]["discriminator"]["mapping"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PlanError("a"), 2),
        (DataError("a"), 3),
        (StageFailed("a"), 6),
        (Interrupted("a"), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_end_with_their_code(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise error

    assert ending(command) == code
    assert "Traceback" not in capsys.readouterr().err


def test_our_own_mistake_names_a_file_with_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert ending(lambda: {}["absent"]) == exits.INTERNAL_ERROR
    said = capsys.readouterr().err
    (file,) = tmp_path.iterdir()
    assert str(file) in said
    assert "Traceback" not in said
    assert "KeyError: 'absent'" in file.read_text()
