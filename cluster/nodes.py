"""The nodes of the cluster that this process is connected to, and those that its autoscaler can add.

Whatever Ray tells of them only in private is asked here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

LAUNCHER_CONFIG = Path("~/ray_bootstrap_config.yaml")
"""Where Ray's cluster launcher leaves its configuration on the head node."""
_UNLIMITED = 1000
"""Taken for "any number of nodes"."""
_HEAD = "node:__internal_head__"
"""Resource by which Ray marks the head node."""


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one kind that an autoscaler can add."""

    name: str
    resources: Mapping[str, float]
    """Of one node."""
    most: int
    """How many more of them."""


def alive() -> dict[str, Mapping[str, float]]:
    """Node id → its resources (`CPU`, `GPU`, …), of every node that answers and is not about to be taken away."""
    import ray

    leaving = draining()
    nodes: Any = ray.nodes()  # untyped
    return {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"] and node["NodeID"] not in leaving}


def draining() -> frozenset[str]:
    """Ids of the nodes that are about to be taken away: a spot instance's notice, a drain by the autoscaler.

    Ray has no public question for this; its own Train asks the same way.
    """
    from ray._private.state import state

    return frozenset(state.get_draining_nodes() or ())


def growth(nodes: Mapping[str, Mapping[str, float]]) -> tuple[NodeGroup, ...] | None:
    """What an autoscaler can add to these nodes.

    Its kinds of nodes are read from where a cluster tells them: Ray's own state, else the launcher's configuration, if
    this process is on the head node. That a monitor runs says nothing: every cluster has one.

    Returns:
        The kinds; none without an autoscaler; `None` if there is one that does not tell them (as on Kubernetes).
    """
    import ray
    from ray._private.state import state
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    config = state.get_cluster_config()
    if config is not None and config.node_group_configs:
        found = [(g.name, dict(g.resources), g.max_count) for g in config.node_group_configs]
        return tuple(_more(*kind, nodes) for kind in found)
    here = nodes.get(ray.get_runtime_context().get_node_id(), {})
    kinds = _of_launcher(LAUNCHER_CONFIG.expanduser()) if _HEAD in here else None
    if kinds is not None:
        return tuple(_more(*kind, nodes) for kind in kinds)
    return None if is_autoscaler_v2() else ()


def _of_launcher(path: Path) -> list[tuple[str, dict[str, float], int]] | None:
    """(Name, resources, most) of each kind of node in a configuration of Ray's cluster launcher."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        in_all = int(config.get("max_workers", _UNLIMITED))
        head = config.get("head_node_type")
        return [
            (name, dict(kind.get("resources") or {}), min(in_all, int(kind.get("max_workers", in_all))))
            for name, kind in config["available_node_types"].items()
            if name != head
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return None


def _more(name: str, resources: Mapping[str, float], most: int, nodes: Mapping[str, Mapping[str, float]]) -> NodeGroup:
    """Those of a kind that are there already, known by their CPUs and GPUs, cannot be added again."""
    there = sum(all(math.isclose(n.get(r, 0.0), resources.get(r, 0.0)) for r in ("CPU", "GPU")) for n in nodes.values())
    return NodeGroup(name, resources, max(0, (_UNLIMITED if most < 0 else min(most, _UNLIMITED)) - there))
