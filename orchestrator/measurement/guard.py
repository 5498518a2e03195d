"""Whether a timing can be trusted: the policy, and the second attempt.

What is seen while something is timed (`watch` sees it) is judged here, and here alone. A timing that was disturbed is
taken again; if the last attempt was disturbed too, its numbers stay and say so.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")

MAX_WAITING = 5.0
"""Percent of a timing that a thread may have been ready to run without getting a processor."""
FOREIGN_PROCESSORS = 0.5
"""Processors that others may use in any case: the system, and the daemons of the cluster that measures."""
MAX_FOREIGN = 10.0
"""Percent of the machine's processor time that others may use besides. They share caches and memory with what is timed
even where processors are left."""


@dataclass(frozen=True)
class Seen:
    """What was seen of the device during one timing; `None` = this machine cannot tell."""

    drift: float | None = None
    """Change of the baseline's speed from the first to the last third of its blocks, in percent of the first."""
    waiting: float | None = None
    """Time that threads of this process were ready but had no processor, in percent of the time passed."""
    foreign: float | None = None
    """Processor time of others than this process and its children, in percent of the machine's."""
    strangers: int | None = None
    """Other processes that computed on the GPU, at most at once."""
    throttled: tuple[str, ...] = ()
    """Why the device slowed itself down."""


@dataclass(frozen=True)
class Limits:
    """What is accepted."""

    max_drift: float = 5.0
    max_foreign: float = MAX_FOREIGN
    max_waiting: float = MAX_WAITING

    @staticmethod
    def on(num_processors: int, max_drift: float) -> Limits:
        """The limits on a machine of this size."""
        return Limits(max_drift, MAX_FOREIGN + 100 * FOREIGN_PROCESSORS / num_processors)


class Watch(Protocol):
    """Watches the device from its creation on."""

    def look(self) -> None:
        """Called between blocks, while no clock runs."""

    def seen(self) -> Seen:
        """What was seen so far."""


def verdict(seen: Seen, limits: Limits) -> str | None:
    """Why a timing should not be trusted; `None` if nothing speaks against it."""
    reasons = []
    if seen.strangers:
        processes = "another process" if seen.strangers == 1 else f"{seen.strangers} other processes"
        reasons.append(f"{processes} computed on the device")
    if seen.waiting is not None and seen.waiting > limits.max_waiting:
        reasons.append(f"its threads waited for a processor during {seen.waiting:.0f} % of the time")
    if seen.foreign is not None and seen.foreign > limits.max_foreign:
        reasons.append(f"other processes used {seen.foreign:.0f} % of the machine's processor time")
    reasons += [f"the device throttled itself ({reason})" for reason in seen.throttled]
    if seen.drift is not None and abs(seen.drift) > limits.max_drift:
        reasons.append(f"the baseline's speed drifted by {seen.drift:+.1f} % between start and end")
    return "; ".join(reasons) or None


def drift(speeds: Sequence[float]) -> float | None:
    """Change from the median of the first third to that of the last, in percent; `None` for fewer than three values."""
    third = len(speeds) // 3
    if third == 0:
        return None
    first, last = statistics.median(speeds[:third]), statistics.median(speeds[-third:])
    return 100 * (last / first - 1)


@dataclass(frozen=True)
class Guarded(Generic[T]):
    """What was taken, and how far it can be trusted."""

    result: T
    seen: Seen
    attempts: int
    unreliable: str | None

    @property
    def observations(self) -> dict[str, float]:
        """What was seen, as numbers for a row's `summary`."""
        named = {
            "attempts": self.attempts,
            "baseline_drift_percent": self.seen.drift,
            "waiting_percent": self.seen.waiting,
            "foreign_cpu_percent": self.seen.foreign,
            "foreign_gpu_processes": self.seen.strangers,
        }
        return {name: float(value) for name, value in named.items() if value is not None}


def guarded(
    take: Callable[[Watch], T],
    speeds: Callable[[T], Sequence[float]],
    watch: Callable[[], Watch],
    limits: Limits,
    attempts: int,
) -> Guarded[T]:
    """Take something, again while the device was not quiet, at most `attempts` times.

    Args:
        take: one attempt.
        speeds: the baseline's speeds during an attempt, in the order of time.
        watch: begins to watch the device.
    """
    attempt, reason = 0, None
    while attempt == 0 or (reason is not None and attempt < attempts):
        attempt += 1
        watching = watch()
        result = take(watching)
        seen = replace(watching.seen(), drift=drift(speeds(result)))
        reason = verdict(seen, limits)
    if reason is not None and attempt > 1:
        reason += f", in the last of {attempt} attempts"
    return Guarded(result, seen, attempt, reason)
