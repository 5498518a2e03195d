"""`slimvit cluster …` and `slimvit submit` without an address, up to where a cluster would be asked."""

from __future__ import annotations

import re

import pytest
import yaml

from orchestrator.exits import ending

SPEC = {
    "name": "small.grid",
    "data": {"kind": "sample"},
    "student": {"model": "vit_tiny_patch16_224", "args": {"patch_size": 7, "img_size": 28, "in_chans": 1}},
    "stages": [{"name": "only", "training": {"epochs": 1}}],
}


@pytest.fixture
def slimvit(tmp_path, monkeypatch, capfd):
    """Run the command on a spec with this `cluster`; gives exit code, stdout and stderr."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)

    def run(arguments, cluster=None, **more):
        from orchestrator.cli import app

        (tmp_path / "spec.yaml").write_text(
            yaml.safe_dump({**SPEC, **more} | ({"cluster": cluster} if cluster else {}))
        )
        code = ending(lambda: app(arguments, prog_name="slimvit", standalone_mode=False))
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


@pytest.mark.parametrize("command", [["cluster", "up"], ["cluster", "down"], ["cluster", "status"], ["submit"]])
def test_a_spec_without_a_cluster_is_told_how_to_name_one(slimvit, command):
    code, _, said = slimvit([*command, "spec.yaml"])
    assert code == 2
    assert "kind: local" in said
    assert "Traceback" not in said


def test_somebody_elses_cluster_is_not_ended(slimvit):
    code, _, said = slimvit(["cluster", "down", "spec.yaml"], {"kind": "address", "address": "127.0.0.1:1"})
    assert code == 2
    assert "was not started by slimvit" in said


@pytest.mark.parametrize("command", ["up", "status"])
def test_a_cluster_that_does_not_answer_is_named(slimvit, command):
    code, _, said = slimvit(["cluster", command, "spec.yaml"], {"kind": "address", "address": "127.0.0.1:1"})
    assert code == 5
    assert "no Ray cluster answers at `127.0.0.1:1`" in said


def test_a_local_cluster_that_is_down_says_so(slimvit):
    assert slimvit(["cluster", "status", "spec.yaml"], {"kind": "local"})[1].startswith("`small-grid` is not running")
    assert slimvit(["cluster", "down", "spec.yaml"], {"kind": "local"})[1] == "`small-grid` was not running\n"
    code, _, said = slimvit(["submit", "spec.yaml"], {"kind": "local"})
    assert code == 5
    assert "slimvit cluster up spec.yaml" in said


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ({"kind": "moon"}, "local.*address.*aws.*kubernetes"),
        ({"kind": "address", "address": "http://a:1"}, "address"),
        ({"kind": "local", "cpu": 2}, "cpus"),
        (
            {"kind": "aws", "region": "Frankfurt", "worker_instance": "g5.xlarge", "max_workers": 1, "image": "i"},
            "region",
        ),
        (
            {"kind": "kubernetes", "image": "i", "max_workers": 1, "min_workers": 2},
            "`min_workers` is 2, `max_workers` only 1",
        ),
        (
            {"kind": "kubernetes", "image": "i", "max_workers": 1, "tolerations": [{"key": "a", "operator": "Equal"}]},
            "`Equal` needs one",
        ),
    ],
)
def test_a_wrong_cluster_is_a_located_problem(slimvit, cluster, said):
    code, _, err = slimvit(["cluster", "status", "spec.yaml"], cluster)
    assert code == 2
    assert re.search(said, err, re.DOTALL)
    assert re.search(r"spec\.yaml:\d+: cluster", err)


KUBERNETES = {"kind": "kubernetes", "image": "registry.example/slimvit:1", "max_workers": 2}
REMOTE = {"storage": {"root": "s3://bucket/store"}, "tracking": {"uri": "http://mlflow:5000"}}


def test_a_dry_run_writes_manifests_and_asks_nobody(slimvit, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no kubectl
    code, out, _ = slimvit(["cluster", "up", "spec.yaml", "--dry-run"], KUBERNETES, **REMOTE)
    assert code == 0
    assert [document["kind"] for document in yaml.safe_load_all(out)] == ["RayCluster"]
    code, out, _ = slimvit(["submit", "spec.yaml", "--dry-run", "--out", "made"], KUBERNETES, **REMOTE)
    assert (code, out) == (0, "made/rayjob.yaml\n")
    spec, job = yaml.safe_load_all((tmp_path / "made" / "rayjob.yaml").read_text())
    assert yaml.safe_load(spec["data"]["experiment.yaml"])["storage"]["root"] == "s3://bucket/store"
    assert job["kind"] == "RayJob"


def test_without_kubectl_the_way_is_printed(slimvit, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, _ = slimvit(["cluster", "up", "spec.yaml", "--out", "made"], KUBERNETES, **REMOTE)
    assert code == 0
    assert "kubectl apply -f raycluster.yaml" in out
    assert (tmp_path / "made" / "raycluster.yaml").is_file()


def test_the_servers_refusal_is_passed_on_with_the_way_out(slimvit, tmp_path, monkeypatch):
    tool = tmp_path / "kubectl"
    tool.write_text("#!/bin/sh\n/bin/cat > /dev/null\necho 'error: no matches for kind \"RayCluster\"' >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, said = slimvit(["cluster", "up", "spec.yaml"], KUBERNETES, **REMOTE)
    assert code == 5
    assert 'no matches for kind "RayCluster"' in said
    assert "KubeRay is not installed" in said


def test_all_that_cannot_work_on_pods_is_said_at_once(slimvit):
    code, _, said = slimvit(["cluster", "up", "spec.yaml"], KUBERNETES)
    assert code == 5
    assert "storage.root" in said
    assert "tracking.uri" in said


def test_where_it_runs_is_part_of_no_stages_name(slimvit):
    plain = slimvit(["plan", "spec.yaml", "--json"])[1]
    clustered = slimvit(["plan", "spec.yaml", "--json"], {"kind": "local", "cpus": 1})[1]
    assert yaml.safe_load(plain)["stages"].keys() == yaml.safe_load(clustered)["stages"].keys()


def test_a_plan_with_a_cluster_says_what_is_not_known_yet(slimvit):
    out = slimvit(["plan", "spec.yaml"], {"kind": "local"})[1]
    assert "is not known: the store has no finished stage" in out
    assert "is not known" not in slimvit(["plan", "spec.yaml"])[1]
    assert "is not known" in slimvit(["plan", "spec.yaml", "--cluster"])[1]
