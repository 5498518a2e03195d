"""Stages that start from a network whose strategies took weights away, or had modules that no longer fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from orchestrator.errors import SpecError
from orchestrator.planning.plan import NetworkSource
from orchestrator.training.checkpoint import load_network, read_tensors
from strategies import registry


def config(name: str, **options: Any) -> Any:
    return registry.resolver(name).model_validate({"name": name, **options})


REMOVING = {
    "skip_attention": ({"blocks": (1, 2)}, "blocks.1.attn."),
    "global_filter": ({"blocks": (0,)}, "blocks.0.attn."),
    "linear_attention": ({"kind": "additive", "blocks": (3,)}, "blocks.3.attn."),
    "conditional_position": ({}, "pos_embed"),
    "rotary_position": ({}, "pos_embed"),
}


@pytest.mark.parametrize("name", REMOVING)
def test_the_same_strategy_goes_on_and_another_stage_is_refused(name, make_stage, run, store):
    options, gone = REMOVING[name]
    acting = (config(name, **options),)
    first = make_stage(strategies=acting, epochs=0)
    run(first)
    weights = read_tensors(store.fetch(f"stages/{first.digest}") / "model.safetensors")
    assert not any(key.startswith(gone) for key in weights)
    load_network(store.fetch(f"stages/{first.digest}"))

    again = make_stage(strategies=acting, epochs=0, student=NetworkSource(stage=first.digest), seed=5)
    run(again)
    kept = read_tensors(store.fetch(f"stages/{again.digest}") / "model.safetensors")
    assert kept.keys() == weights.keys()
    assert all(torch.equal(kept[key], weights[key]) for key in weights)

    without = make_stage(epochs=0, student=NetworkSource(stage=first.digest))
    with pytest.raises(SpecError, match=rf"(?s)has no {gone}.*`{name}`.*List those strategies"):
        run(without)


def test_modules_that_no_longer_fit_begin_anew_and_are_named(make_stage, run, store, caplog):
    first = make_stage(strategies=(config("early_exit", blocks=(1,)),), epochs=0)
    run(first)
    again = make_stage(
        strategies=(config("early_exit", blocks=(1, 2)),), epochs=0, student=NetworkSource(stage=first.digest)
    )
    run(again)
    assert [r.message for r in caplog.records if "`early_exit` begin anew" in r.message]
