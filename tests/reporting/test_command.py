"""`slimvit compare` and `slimvit ui`, from the outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import UsageError
from orchestrator.reporting import report
from orchestrator.reporting.command import compare_experiment
from orchestrator.reporting.comparison import Comparison
from orchestrator.reporting.ui import open_ui, serve
from specs.experiment import TrackingSpec


@pytest.fixture
def kept(lab_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A finished experiment whose plan is in its store, in the current folder."""
    finished = lab_of(seeds=(0,), merging=("none", "r2")).finish()
    monkeypatch.chdir(finished.root)
    folder = finished.root / "plan"
    folder.mkdir()
    tracking = TrackingSpec(uri=f"sqlite:///{finished.root / 'record.db'}")
    experiment = finished.experiment.model_copy(update={"tracking": tracking})
    (folder / "plan.json").write_text(finished.plan.model_dump_json())
    (folder / "experiment.json").write_text(experiment.model_dump_json())
    finished.store.commit("plans/lab/20260101T000000Z-0123456789ab", folder)
    return finished


def test_json_and_csv_to_file_and_out(kept: Any) -> None:
    printed = compare_experiment("lab", [], "json", None, kept.store.root)
    assert len(Comparison.model_validate_json(printed).rows) == 4
    said = compare_experiment("lab", [], "csv", Path("out/lab.csv"), kept.store.root)
    assert said == str(kept.root / "out" / "lab.csv")
    assert (kept.root / "out" / "lab.csv").read_text().count("\n") == 5


def test_a_file_that_cannot_be_written(kept: Any) -> None:
    (kept.root / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be written.*--out"):
        compare_experiment("lab", [], "csv", Path("file/lab.csv"), kept.store.root)


def test_table_writes_the_report_and_the_record_and_the_ui_shows_them(kept: Any) -> None:
    said = compare_experiment("lab", [], "table", None, kept.store.root)
    shown = kept.root / "reports" / "lab.html"
    assert "4 of 4 combinations measured" in said
    assert f"Report: {shown}" in said
    assert shown.read_text().startswith("<!DOCTYPE html>")

    script = "from pathlib import Path; from orchestrator.reporting.ui import open_ui; "
    script += f"open_ui(port=0, store=Path({str(kept.store.root)!r}))"
    ui = subprocess.Popen(
        [sys.executable, "-u", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        assert ui.stdout is not None
        line = ui.stdout.readline()
        assert line.startswith("MLflow UI: http://127.0.0.1:")
        address = line.split()[2]
        request = urllib.request.Request(
            f"{address}/api/2.0/mlflow/runs/search",
            data=json.dumps({"experiment_ids": ["1"], "max_results": 100}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            runs = json.load(answer)["runs"]
        assert len(runs) == 1 + len(kept.plan.combinations) + len(kept.plan.stages)
        parent = next(r for r in runs if r["info"]["run_name"] == "lab")
        report_url = f"{address}/get-artifact?path=lab.html&run_uuid={parent['info']['run_id']}"
        with urllib.request.urlopen(report_url, timeout=30) as answer:
            assert answer.read() == shown.read_bytes()
    finally:
        ui.send_signal(signal.SIGINT)
        rest, _ = ui.communicate(timeout=30)
    assert "MLflow UI ended." in rest
    assert ui.returncode == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address, timeout=5)


def test_the_ui_needs_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"there is no record at .*mlflow\.db yet"):
        open_ui()
    assert not (tmp_path / "mlflow.db").exists()


def test_the_ui_needs_a_free_port(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"port {port} on 127\.0\.0\.1 cannot be used: .*--port"):
            serve(f"sqlite:///{tmp_path / 'mlflow.db'}", port)


def test_a_server_needs_no_ui_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    serve("http://mlflow.example:5000", 5000)
    assert capsys.readouterr().out == "MLflow runs at http://mlflow.example:5000; open it in a browser.\n"


def test_questions_are_answered_instead_of_the_table(kept: Any) -> None:
    def ask(output_format: str = "table", **question: Any) -> str:
        return compare_experiment("lab", [], output_format, None, kept.store.root, **question)

    assert "4 combinations with latency_ms <= 100, by top1" in ask(where="latency_ms<=100", best="accuracy")
    assert "merging=r2 on top of distill=soft" in ask(effects=True)
    assert "Of the combinations with params < 15000000" in ask(claims=["params<15M, top1>=83.2"])
    found = json.loads(ask("json", where="latency_ms<=100", effects=True, claims=["params<15M, top1>=83.2"]))
    assert sorted(found) == ["answer", "claims", "effects"]
    assert not (kept.root / "reports").exists()
    with pytest.raises(UsageError, match="`--format table` or json, not csv"):
        ask("csv", effects=True)
    with pytest.raises(UsageError, match="there is no metric `speed`"):
        ask(best="speed")


def test_a_complete_record_is_not_asked_again(kept: Any) -> None:
    first = compare_experiment("lab", [], "table", None, kept.store.root)
    record = kept.root / "record.db"
    before = record.read_bytes()
    record.write_bytes(b"no database")  # asking it would fail
    assert compare_experiment("lab", [], "table", None, kept.store.root) == first
    record.write_bytes(before)
    changed = compare_experiment("lab", [], "table", None, kept.store.root, cost="latency_ms")
    assert "Record: sqlite:///" in changed
    assert record.read_bytes() != before


def test_a_report_is_written_again_only_when_something_it_shows_has_changed(kept: Any) -> None:
    def written(**options: Any) -> bool:
        """Whether `compare` replaces the report, which is a new file then."""
        before = file.stat()
        compare_experiment("lab", [], "html", None, kept.store.root, **options)
        return (file.stat().st_ino, file.stat().st_mtime_ns) != (before.st_ino, before.st_mtime_ns)

    file = kept.root / "reports" / "lab.html"
    compare_experiment("lab", [], "html", None, kept.store.root)
    whole = file.read_bytes()
    assert not written()
    file.write_bytes(whole[: len(whole) // 2])
    assert written()
    assert file.read_bytes() == whole
    assert written(cost="latency_ms")
    assert file.read_bytes() != whole
    assert written(claims=["params<15M, top1>=83.2"])
    assert not written(claims=["params<15M, top1>=83.2"])


def test_a_report_by_another_program_is_written_again(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compare_experiment("lab", [], "html", None, kept.store.root)
    file = kept.root / "reports" / "lab.html"
    before = file.read_bytes()
    page = kept.root / "page"
    shutil.copytree(report._PAGE, page)
    (page / "style.css").write_text("body { color: teal }")
    monkeypatch.setattr(report, "_PAGE", page)
    compare_experiment("lab", [], "html", None, kept.store.root)
    assert b"color: teal" in file.read_bytes()
    assert file.read_bytes() != before
