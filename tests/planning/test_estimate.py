"""Device-hours and cost of what is to run, against numbers worked out by hand."""

from __future__ import annotations

import json

import pytest

from cluster import state
from cluster.local import LocalStore
from orchestrator import cluster_estimate
from orchestrator.planning.estimate import Measured, Range, Work, estimate
from orchestrator.planning.experience import key_of, macs_of, measured
from orchestrator.planning.plan import NetworkSource, TrainStage
from specs.cluster import AwsCluster, LocalCluster
from specs.data import Sample
from specs.model import ModelSpec
from specs.training import TrainingSpec


def work(key: str = "a", images: int = 3600, macs: float | None = 100.0) -> Work:
    return Work(f"stage {key}", key, images, macs)


def test_runs_of_the_same_kind_give_mean_and_range():
    found = estimate([work()], [Measured("a", 100.0, 1.0), Measured("a", 100.0, 3.0), Measured("b", 1.0, 9.0)])
    assert found.stages[0].basis == "same"
    assert found.hours == Range(2.0, 1.0, 3.0)  # 3600 images · 2 s / 3600 s


def test_a_single_run_borrows_the_spread_of_repeated_ones():
    # b's runs lie 25 % below and above their mean of 4.
    found = estimate([work()], [Measured("a", None, 2.0), Measured("b", None, 3.0), Measured("b", None, 5.0)])
    assert found.hours == Range(2.0, 1.5, 2.5)


def test_a_single_run_alone_has_no_known_range():
    assert estimate([work()], [Measured("a", None, 2.0)]).hours == Range(2.0, None, None)


def test_another_network_is_scaled_from_the_nearest_in_macs():
    earlier = [Measured("b", 80.0, 4.0), Measured("c", 1000.0, 20.0)]
    found = estimate([work(images=7200)], earlier)
    assert found.stages[0].basis == "scaled"
    # Nearest is b: 4 s / 80 · 100 = 5 s; c has 0.02 s a MAC, so 2 s; twice 3600 images.
    assert found.hours == Range(10.0, 4.0, 10.0)


def test_nearness_is_a_ratio():
    # 100 is 4 times 25 and 3 times less than 300; by difference 25 would be nearer.
    found = estimate([work()], [Measured("b", 25.0, 1.0), Measured("c", 300.0, 6.0)])
    assert found.hours is not None
    assert found.hours.likely == pytest.approx(2.0)


def test_what_nothing_is_known_of_is_left_out_and_named():
    found = estimate([work("x", macs=None), work("a")], [Measured("a", None, 1.0), Measured("a", None, 1.0)])
    assert found.unknown == ("stage x",)
    assert found.hours == Range(1.0, 1.0, 1.0)
    assert estimate([work()], []).hours is None


def test_ranges_add_up_end_to_end():
    earlier = [Measured("a", None, 1.0), Measured("a", None, 3.0), Measured("b", None, 4.0), Measured("b", None, 6.0)]
    assert estimate([work("a"), work("b")], earlier).hours == Range(7.0, 5.0, 9.0)
    assert Range(1.0, 1.0, 2.0) + Range(1.0, None, None) == Range(2.0, None, None)


def train_stage(digest: str, model: ModelSpec, batch_size: int = 10) -> TrainStage:
    return TrainStage(
        digest=digest,
        label="s",
        digest_parts={},
        parents=(),
        student=NetworkSource(model=model),
        teacher=None,
        strategies=(),
        training=TrainingSpec(epochs=2, batch_size=batch_size),
        data=Sample(kind="sample"),
        num_classes=10,
        seed=int(digest[0]),
    )


MODEL = ModelSpec(
    model="vit_tiny_patch16_224",
    args={
        "patch_size": 7,
        "embed_dim": 64,
        "depth": 4,
        "num_heads": 4,
        "img_size": 28,
        "in_chans": 1,
        "num_classes": 10,
    },
)


@pytest.fixture
def store(tmp_path):
    made = LocalStore(tmp_path / "store")
    for digest, device, hours in (("1" * 64, "cpu", 0.5), ("2" * 64, "NVIDIA H100", 0.01)):
        folder = tmp_path / digest
        folder.mkdir()
        (folder / "stage.json").write_text(train_stage(digest, MODEL).model_dump_json())
        result = {"device_hours": hours, "steps": 100, "environment": {"device": device}}
        (folder / "result.json").write_text(json.dumps(result))
        made.commit(f"stages/{digest}", folder)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "rows.json").write_text("[]")
    made.commit("stages/" + "3" * 64, tmp_path / "rows")
    return made


def test_the_store_is_read_by_device(store):
    (cpu,), (gpu,) = measured(store, on_gpu=False), measured(store, on_gpu=True)
    assert cpu.seconds_per_image == pytest.approx(0.5 * 3600 / 1000)
    assert gpu.seconds_per_image == pytest.approx(0.01 * 3600 / 1000)
    assert cpu.key == gpu.key == key_of(train_stage("4" * 64, MODEL)), "another seed is the same work"
    assert cpu.key != key_of(train_stage("1" * 64, MODEL, batch_size=20))


def test_macs_of_a_training_step_are_three_forward_passes():
    # 16 patches and a class token, width 64, 4 blocks with MLPs of 256, 10 classes.
    N, D, M = 17, 64, 256
    block = 4 * N * D * D + 2 * N * N * D + 2 * N * D * M
    forward = 16 * 49 * D + 4 * block + D * 10
    assert macs_of(train_stage("1" * 64, MODEL)) == 3 * forward


def test_a_price_is_the_specs_or_that_of_the_same_machines(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    aws = AwsCluster(kind="aws", region="eu-west-1", worker_instance="g5.xlarge", max_workers=1, image="i")
    assert cluster_estimate.price_of(aws, "grid") is None
    known = {"date": "2026-01-02", "region": "eu-west-1", "instance": "g5.xlarge", "worker": 0.5}
    state.remember("aws-prices", "grid", known)
    assert cluster_estimate.price_of(aws, "grid") == (0.5, "AWS on 2026-01-02")
    assert cluster_estimate.price_of(aws.model_copy(update={"worker_instance": "p5.48xlarge"}), "grid") is None
    own = LocalCluster(kind="local", price_per_hour=0.25)
    assert cluster_estimate.price_of(own, "grid") == (0.25, "`cluster.price_per_hour`")
    assert cluster_estimate.price_of(None, "grid") is None
