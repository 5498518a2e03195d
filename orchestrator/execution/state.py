"""How the queue stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.execution.events import Event
from orchestrator.execution.shares import Counts


@dataclass(frozen=True)
class QueueState:
    """What the driver needs to know, in one answer."""

    events: tuple[Event, ...]
    """What happened since the last time."""
    busy: Mapping[int, str]
    """Lane → digest of the stage it holds."""
    unsettled: int
    """Stages that are neither finished, failed, skipped nor given up."""
    wanted: int
    """Lanes that could work right now, those that do included."""
    placed: Mapping[int, tuple[str, ...]]
    """Lane → the node of each of its workers."""
    stuck: tuple[Any, ...]
    """Handles of workers whose stage ignored its deadline; they must be killed."""
    excluded: frozenset[str] = frozenset()
    """Ids of nodes on which no lane shall be started."""
    avoid: frozenset[str] = frozenset()
    """Ids of nodes on which a stage that waits shall not be tried again."""
    sizes: tuple[Counts, ...] = ()
    """For stages that wait, the most urgent first, the numbers of workers that a lane for it may have; empty = any."""
    sizes_of: Mapping[int, Counts] = field(default_factory=dict)
    """Lane → the numbers of workers that it may have for the stage it trains; empty = any."""
