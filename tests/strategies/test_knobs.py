"""Knobs: what can be turned after training, and to which settings."""

from __future__ import annotations

import json

import pytest
import torch

from specs.model import ModelSpec
from strategies import registry
from strategies.catalog import facts_of
from strategies.claims import conflicts
from strategies.compose import build_model, compose
from strategies.facts import Facts
from strategies.knobs import check_wanted, knob_of, sweeps_of, trained_setting, turned
from tests.strategies.toys import facts_for, images, step, strategy, student, teacher, toy

KNOBS = [name for name in registry.names() if registry.load(name).knob]


def test_there_are_knobs() -> None:
    assert {"early_exit", "token_merging"} <= set(KNOBS)


@pytest.mark.parametrize("name", KNOBS)
def test_a_sweep_runs_on_the_same_weights(name: str) -> None:
    """Every setting of a default sweep takes the weights that the strategy trained, and costs no parameter."""
    acting = strategy(name, registry.load(name).examples[0])
    facts = facts_for(toy())
    network = student(toy(), acting)
    step(network, [acting], images(), torch.tensor([0, 3, 9, 2, 2, 7]), teacher(acting))
    sweeps, impossible = sweeps_of([acting], facts, None)
    assert not impossible
    settings = sweeps[f"{name}.{acting.knob}"]
    assert 3 <= len(settings) <= 7
    assert settings == sorted(settings)
    assert trained_setting(acting) in settings
    for setting in settings:
        other = turned(acting, setting)
        assert trained_setting(other) == setting
        assert not conflicts([other], facts)
        rebuilt = compose(build_model(toy(), network.shapes), [other], facts.further(network.shapes), restored=True)
        rebuilt.load_network_state(network.network_state())
        other.at(rebuilt, 1.0)
        with torch.no_grad():
            assert torch.isfinite(rebuilt.eval()(images()).logits).all()


def test_merging_at_imagenets_size_is_swept_as_in_its_paper() -> None:
    """224 px in 16 px patches, 12 blocks: arXiv:2210.09461 goes up to r = 16, where 196 patches become a handful."""
    deit = Facts(facts_of(ModelSpec(model="deit_small_patch16_224")))
    assert list(strategy("token_merging", {"r": 13}).sweep(deit)) == [16, 12, 8, 4, 0]
    assert sweeps_of([strategy("token_merging", {"r": 13})], deit, None)[0] == {
        "token_merging.r": [0, 4, 8, 12, 13, 16]
    }


def test_a_list_of_numbers_is_no_knob() -> None:
    listed = strategy("token_merging", {"r": [0, 12, 12, 4]})
    assert knob_of(listed) is None
    assert sweeps_of([listed], facts_for(toy()), {"token_merging.r": [1, 2]}) == ({}, [])


def test_a_knob_is_turned_with_all_else_as_trained() -> None:
    merging = strategy("token_merging", {"r": 6, "inflect": -0.5, "blocks": [1, 2, 3], "prop_attn": False})
    assert turned(merging, 2.0).config.model_dump() == merging.config.model_dump() | {"r": 2}
    exits = strategy("early_exit", {"blocks": [1]})
    sweeps, _ = sweeps_of([merging, exits], facts_for(toy()), {"token_merging.r": [2]})
    assert sweeps == {"token_merging.r": [2, 6]}
    assert sweeps_of([merging, exits], facts_for(toy()), {}) == ({}, [])


def test_a_setting_that_another_strategy_forbids() -> None:
    """r = 0 owns nothing, so another owner of the tokens may stand beside it; turned up, the two collide."""
    merging, feature = strategy("token_merging", {"r": 0}), strategy("token_merging", {"r": 4})
    with_both, impossible = sweeps_of([merging, Other(feature.config)], facts_for(toy()), {"token_merging.r": [4]})
    assert with_both == {}
    assert len(impossible) == 1
    assert "`token_merging.r` at 4: " in impossible[0]
    assert "`other`" in impossible[0]
    # A strategy's own sweep leaves out what is impossible, and says nothing.
    assert sweeps_of([merging, Other(feature.config)], facts_for(toy()), None) == ({}, [])


class Other(registry.load("token_merging")):  # type: ignore[misc]
    """Another strategy that changes which tokens exist."""

    knob = None

    def __init__(self, config: object) -> None:
        super().__init__(config)
        self.name = "other"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"early_exi.threshold": [0.5]}, r"no strategy `early_exi`; did you mean `early_exit`\?"),
        ({"early_exit.treshold": [0.5]}, r"did you mean `early_exit.threshold`\? Knobs: .*`token_merging.r`"),
        ({"early_exit.head": [0.5]}, r"only `early_exit.threshold` can be turned"),
        ({"early_exit": [0.5]}, r"only `early_exit.threshold` can be turned"),
        ({"structured_pruning.ratio": [0.5]}, r"`structured_pruning` has no option that can be turned.*Knobs: "),
        ({"early_exit.threshold": [0.5, 1.5]}, r"1.5 is impossible; allowed: less than or equal to 1"),
        ({"token_merging.r": [-1]}, r"-1 is impossible; allowed: greater than or equal to 0"),
        ({"token_merging.r": [2.5]}, r"2.5 is impossible; allowed: a valid integer"),
    ],
)
def test_what_no_network_can_do_is_refused_by_name(wanted: dict[str, list[float]], said: str) -> None:
    import re

    (problem,) = check_wanted(wanted)
    assert re.search(said, problem), problem


def test_what_can_be_done_is_not_refused() -> None:
    assert check_wanted({"early_exit.threshold": [0, 0.5, 1], "token_merging.r": [0, 8.0]}) == []


def test_the_knob_must_be_an_option() -> None:
    found = type("Odd", (registry.load("early_exit"),), {"knob": "blockz"})
    assert registry._unfit(found, "early_exit") == "has the `knob` 'blockz', which is no option of its `Config`"


def test_targets_must_be_options() -> None:
    found = type("Odd", (registry.load("early_exit"),), {"targets": ("target_mac",)})
    problem = "has 'target_mac' among its `targets`, which is no option of its `Config`"
    assert registry._unfit(found, "early_exit") == problem


def test_settings_are_numbers_in_json() -> None:
    sweeps, _ = sweeps_of([strategy("early_exit", {"blocks": [1]})], facts_for(toy()), None)
    assert json.loads(json.dumps(sweeps)) == {"early_exit.threshold": [0.5, 0.7, 0.9, 0.99, 1.0]}
