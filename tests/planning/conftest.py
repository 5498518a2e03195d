"""From a spec to its plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.planning.make import make_plan
from orchestrator.planning.plan import Plan
from specs.load import load
from strategies import registry
from tests.planning.specs import spec


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., Plan]:
    """Write a spec to a file, load it, plan it."""

    def plan(**changes: Any) -> Plan:
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump(spec(**changes), sort_keys=False), encoding="utf-8")
        return make_plan(load(path, resolver=registry.resolver))

    return plan
