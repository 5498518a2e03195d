from __future__ import annotations

import json

import pytest

from strategies.facts import Facts, ModelFacts
from strategies.shapes import WHOLE, BlockShape, Shapes

CUT = Shapes(
    blocks={1: BlockShape(2, 100), 0: BlockShape(3, 64)}, embed_dim=40, head_dim=8, removed=(5, 2), widths={"a.fc1": 7}
)
FACTS = ModelFacts("some_vit", "vit", 4, 10, 64, embed_dim=48, num_heads=3, head_dim=16, tap_widths=(48,) * 4)


def test_json_and_back():
    for shapes in (WHOLE, CUT, Shapes(removed=(1,)), Shapes(embed_dim=8)):
        assert Shapes.from_json(json.loads(json.dumps(shapes.to_json()))) == shapes
    assert WHOLE.to_json() == {}


def test_the_older_form_is_read():
    assert Shapes.from_json({"0": [2, 100], "3": [1, 8]}) == Shapes(blocks={0: BlockShape(2, 100), 3: BlockShape(1, 8)})


@pytest.mark.parametrize("wrong", [{"width": 3}, {"blocks": {"x": [1, 2]}}, {"0": [1]}, {"removed": ["a"]}])
def test_what_is_no_shape_is_refused(wrong):
    with pytest.raises(ValueError, match=r".+"):
        Shapes.from_json(wrong)


def test_equal_shapes_are_one_key():
    same = Shapes(blocks=CUT.blocks, embed_dim=40, head_dim=8, removed=(2, 5), widths={"a.fc1": 7})
    assert {CUT: 1}[same] == 1
    assert not WHOLE
    assert CUT
    assert CUT != WHOLE


def test_facts_follow_the_shapes_once():
    facts = Facts.of(FACTS, Shapes(embed_dim=40, removed=(1,)))
    assert (facts.student.depth, facts.student.embed_dim, facts.student.tap_widths) == (3, 40, (40, 40, 40))
    further = facts.further(Shapes(embed_dim=24, head_dim=8, removed=(1, 3)))
    assert (further.student.depth, further.student.embed_dim, further.student.head_dim) == (2, 24, 8)
    assert further.further(further.shapes) == further
    assert further == Facts.of(FACTS, further.shapes)
    assert further.shapes.left(4) == [0, 2]
