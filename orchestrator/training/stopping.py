"""When to stop before the end: on request or at the deadline, at a step that all workers agree on."""

from __future__ import annotations

import time
from collections.abc import Callable

from orchestrator.training.distributed import WorkerGroup

SECONDS_BETWEEN_VOTES = 0.5
MOST_STEPS_BETWEEN_VOTES = 100


class StopVote:
    """Asks the workers whether to stop. A vote costs a round trip between them, so it is held about twice a second;
    after how many steps the next one comes is part of the vote, so that all hold it at the same step."""

    def __init__(self, group: WorkerGroup, should_stop: Callable[[], bool], deadline_s: float | None) -> None:
        self.group, self.should_stop, self.deadline_s = group, should_stop, deadline_s
        self.started = self.last_vote = time.monotonic()
        self.steps_left = self.interval = 1

    def __call__(self) -> str | None:
        """After a step: why all workers stop now, or `None`."""
        self.steps_left -= 1
        if self.steps_left > 0:
            return None
        now = time.monotonic()
        late = self.deadline_s is not None and now - self.started > self.deadline_s
        interval = 1
        if self.group.world_size > 1:
            seconds_per_step = max(now - self.last_vote, 1e-6) / self.interval
            interval = max(1, min(MOST_STEPS_BETWEEN_VOTES, int(SECONDS_BETWEEN_VOTES / seconds_per_step)))
        wanted, overdue, agreed = self.group.max([float(self.should_stop()), float(late), float(interval)])
        self.last_vote, self.steps_left, self.interval = now, int(agreed), int(agreed)
        if overdue:
            return f"its deadline of {self.deadline_s:g} s has passed"
        return "a stop was asked for" if wanted else None
