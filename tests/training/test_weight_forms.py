"""Sparse, shared and factored weights in a whole stage: exact resume, what lies in the artefact, a stage behind it."""

from __future__ import annotations

import pytest
import safetensors.torch

from cluster.local import LocalStore
from orchestrator.errors import SpecError
from orchestrator.planning.plan import NetworkSource
from orchestrator.training.checkpoint import read_network
from orchestrator.training.interface import StageInterrupted
from strategies import registry


def acting(name, **options):
    return registry.resolver(name).model_validate({"name": name, **options})


def folder_of(store, stage):
    return store.fetch(f"stages/{stage.digest}")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sparse_weights", {"update_every": 2, "density": 0.4}),
        ("weight_sharing", {}),
        ("low_rank", {"energy": 0.5}),
    ],
)
def test_a_stopped_stage_ends_as_if_it_had_not_been(make_stage, run, tmp_path, name, options):
    stage = make_stage(batch_size=32, ema=0.8, checkpoint_every_steps=1, strategies=(acting(name, **options),))
    stopped, whole = LocalStore(tmp_path / "stopped"), LocalStore(tmp_path / "whole")
    calls = iter([False, False, True])
    with pytest.raises(StageInterrupted, match="after step 3 of 5"):
        run(stage, store=stopped, should_stop=lambda: next(calls))
    resumed, undisturbed = run(stage, store=stopped), run(stage, store=whole)
    assert resumed["metrics"] == undisturbed["metrics"]
    files = [(folder_of(store, stage) / "model.safetensors").read_bytes() for store in (stopped, whole)]
    assert files[0] == files[1]


def test_the_artefact_of_a_sparse_network_holds_its_zeros(make_stage, run, store):
    stage = make_stage(batch_size=32, ema=0.8, strategies=(acting("sparse_weights", update_every=2, pattern="2:4"),))
    run(stage)
    state = safetensors.torch.load_file(folder_of(store, stage) / "model.safetensors")
    for b in range(4):
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            fours = (state[f"blocks.{b}.{layer}.weight"] != 0).unflatten(1, (-1, 4))
            assert int(fours.sum(-1).max()) == 2


def test_later_stages_go_on_with_factors_and_list_what_is_shared(make_stage, run, store):
    for name, options, listed in (("low_rank", {"rank": 8}, True), ("weight_sharing", {}, False)):
        first = make_stage(epochs=0, strategies=(acting(name, **options),))
        run(first)
        source = NetworkSource(stage=first.digest)
        behind = make_stage(epochs=0, student=source, parents=(first.digest,))
        if listed:
            run(behind)
            assert read_network(folder_of(store, behind)).shapes.ranks
        else:
            with pytest.raises(SpecError, match="List those strategies here too"):
                run(behind)
            run(make_stage(epochs=0, student=source, parents=(first.digest,), strategies=(acting(name),)))
