"""Operating points in plans: which settings each network is measured at, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import PlanError, UsageError
from orchestrator.planning.make import make_plan
from orchestrator.planning.manifest import Manifests
from orchestrator.planning.plan import MeasureStage, Plan
from orchestrator.planning.remeasure import measured_anew
from specs.load import load
from specs.resources import ResourcesSpec
from strategies import registry
from strategies.api import OptionError
from strategies.dynamic.token_merging import TokenMerging

EXITS = {"name": "early_exit", "blocks": [1], "threshold": 0.9}
AXIS = {"none": [], "exit": [EXITS], "merge": [{"name": "token_merging", "r": 2}]}


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., Plan]:
    def plan(operating_points: Any, strategies: Any = AXIS, **matrix: Any) -> Plan:
        spec = {
            "name": "tested",
            "data": {"kind": "sample"},
            "student": {
                "model": "vit_tiny_patch16_224",
                "args": {"patch_size": 7, "embed_dim": 48, "depth": 4, "num_heads": 3},
            },
            "stages": [{"name": "student"}],
            "matrix": {"axes": {"dynamic": {"strategies": strategies}}, **matrix},
            "measurement": {"operating_points": operating_points},
        }
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
        return make_plan(load(path, resolver=registry.resolver))

    return plan


def measurements(plan: Plan) -> dict[str, MeasureStage]:
    found = {c.labels["dynamic"]: plan.stages[c.measured_by] for c in plan.combinations}
    assert all(isinstance(stage, MeasureStage) for stage in found.values())
    return found  # type: ignore[return-value]


def test_each_network_has_the_settings_of_its_own_knobs(planned):
    stages = measurements(planned(None))
    assert stages["none"].operating_points == {}
    assert stages["exit"].operating_points == {"early_exit.threshold": [0.5, 0.7, 0.9, 0.99, 1.0]}
    assert stages["merge"].operating_points == {"token_merging.r": [0, 1, 2, 3, 4]}
    again = MeasureStage.model_validate_json(stages["exit"].model_dump_json())
    assert again.operating_points == stages["exit"].operating_points


def test_the_spec_may_say_which(planned):
    stages = measurements(planned({"early_exit.threshold": [0.6, 0.3]}))
    assert stages["exit"].operating_points == {"early_exit.threshold": [0.3, 0.6, 0.9]}, "the trained one is among them"
    assert stages["merge"].operating_points == {}
    assert measurements(planned({}))["exit"].operating_points == {}


def test_only_who_has_the_knob_is_measured_again(planned):
    before, after = measurements(planned(None)), measurements(planned({"token_merging.r": [4]}))
    assert before["none"].digest == after["none"].digest
    assert before["merge"].digest != after["merge"].digest
    assert before["merge"].parents == after["merge"].parents, "and nothing is trained"


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ({"early_exit.treshold": [0.5]}, r"spec.yaml: `measurement.operating_points`:\n.*did you mean `early_exit.thr"),
        ({"late_exit.threshold": [0.5]}, r"no strategy `late_exit`"),
        ({"early_exit.threshold": [2]}, r"2 is impossible; allowed: less than or equal to 1"),
    ],
)
def test_what_no_network_can_do_fails_the_plan(planned, points, message):
    with pytest.raises(PlanError, match=message):
        planned(points, on_conflict="drop")


def test_a_setting_that_one_combination_cannot_have(planned, monkeypatch):
    """A network of 4 blocks with 16 patches: here a strategy that draws its own line."""

    def claims(self, facts):
        if self.config.r == 7:
            raise OptionError("token_merging", "r", "7 is too much", "0 to 6", "Write less.")
        return whole(self, facts)

    whole = TokenMerging.claims
    monkeypatch.setattr(TokenMerging, "claims", claims)
    with pytest.raises(PlanError, match=r"`token_merging.r` at 7: .*allowed: 0 to 6(.|\n)*in `dynamic=merge`"):
        planned({"token_merging.r": [1, 7]})
    assert set(measurements(planned({"token_merging.r": [1, 7]}, on_conflict="drop"))) == {"none", "exit"}
    assert measurements(planned({"token_merging.r": [1]}))["merge"].operating_points == {"token_merging.r": [1, 2]}


def test_other_points_are_not_taken_behind_the_plans_back(planned):
    stage = measurements(planned(None))["exit"]
    resources = ResourcesSpec()
    assert measured_anew(stage, stage.measurement, resources, Manifests()).digest == stage.digest
    none = stage.measurement.model_copy(update={"operating_points": {}})
    assert measured_anew(stage, none, resources, Manifests()).operating_points == {}
    other = stage.measurement.model_copy(update={"operating_points": {"early_exit.threshold": [0.1]}})
    with pytest.raises(UsageError, match="belong to the spec"):
        measured_anew(stage, other, resources, Manifests())
