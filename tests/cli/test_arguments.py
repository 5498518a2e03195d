"""Values on the command line."""

from __future__ import annotations

import pytest

from orchestrator.arguments import chosen, pairs, split, strategy
from orchestrator.errors import UsageError
from strategies import registry


def test_pairs_are_yaml() -> None:
    found = pairs(["depth=3", "rate=1e-1", "qk_norm=true", "layer={a: [1, 2]}", "name=x=y", "empty="], "--model-arg")
    assert found == {"depth": 3, "rate": 0.1, "qk_norm": True, "layer": {"a": [1, 2]}, "name": "x=y", "empty": None}


@pytest.mark.parametrize("texts", [["depth"], ["=3"], ["a=1", "a=2"], ["a=[1"]])
def test_what_is_no_pair_is_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="--model-arg"):
        pairs(texts, "--model-arg")


def test_commas_in_brackets_and_quotes_do_not_split() -> None:
    assert split("r=[1, 2],a={b: 1, c: 2},d='x,y',e=1") == ["r=[1, 2]", "a={b: 1, c: 2}", "d='x,y'", "e=1"]
    assert split("") == []


def test_a_strategy_with_options() -> None:
    options = strategy("token_merging:r=[4,2],blocks=[0,1],prop_attn=false", registry.resolver)
    assert options.model_dump() == {
        "name": "token_merging", "r": (4, 2), "inflect": 0.0, "prop_attn": False, "blocks": (0, 1),
    }  # fmt: skip
    assert strategy("response", registry.resolver).name == "response"


def test_chosen_names() -> None:
    assert chosen(["a,b", "c"], "abc", "--only") == ["a", "b", "c"]
    with pytest.raises(UsageError, match="there is no `d`"):
        chosen(["d"], "abc", "--only")
