"""Run a plan: start a cluster and lanes if there is anything to do, watch, and say what became of every stage."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

from cluster import nodes
from cluster.connect import ClusterUnreachable, Connection, connect
from cluster.storage import ArtifactStore
from orchestrator.errors import ResourceError
from orchestrator.execution.admission import (
    Admission,
    Resources,
    admit,
    check_measurements,
    check_stages,
    never_runs,
    to_come,
)
from orchestrator.execution.causes import first_line, found_no_place, of_group
from orchestrator.execution.events import (
    Event,
    LaneDown,
    LaneUp,
    NodeExcluded,
    NoRoom,
    PlanGrew,
    RunStarted,
    StageFailed,
    StageFinished,
    StageFound,
    StageRetried,
    StageSkipped,
    StageStarted,
    StageStopped,
)
from orchestrator.execution.failures import Budgets
from orchestrator.execution.handed import parallel_stages, sort_out, to_queue
from orchestrator.execution.lane import LaneSpec, Runners
from orchestrator.execution.lanes import Lanes
from orchestrator.execution.queue_actor import queue_actor
from orchestrator.execution.shares import Shares
from orchestrator.execution.state import QueueState
from orchestrator.execution.steering import Steering
from orchestrator.planning import status
from orchestrator.planning.failed import FailureNotes
from orchestrator.planning.feasible import worker_counts
from orchestrator.planning.plan import Plan
from specs.experiment import Experiment
from specs.secrets import redact

_POLL_S = 0.25
_SAVE_PATIENCE_S = 15.0
"""How long stages may take to save their progress after a stop, in seconds."""
_END_PATIENCE_S = 10.0
"""How long lanes may take to end once there is no more work, in seconds."""
_CLOSE_PATIENCE_S = 20.0
"""How long giving the leases back may take, in seconds; what is not given back expires."""
_LOOK_S = 2.0
"""How often the nodes of the cluster are looked at, in seconds."""


@dataclass
class RunSummary:
    """What became of every stage."""

    finished: list[str] = field(default_factory=list)
    """Digests of stages that this run finished."""
    done_before: list[str] = field(default_factory=list)
    """Digests of stages that earlier runs finished."""
    found: list[str] = field(default_factory=list)
    """Digests of stages that other runs on the same store finished meanwhile."""
    failed: dict[str, str] = field(default_factory=dict)
    """Digest → reason."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Digest → digest of the failed stage that it needs."""
    stopped: dict[str, str] = field(default_factory=dict)
    """Digest of a stage that a search gave up → on what evidence."""
    interrupted: bool = False
    """Whether it was stopped before everything was settled; another run goes on."""
    excluded: dict[str, str] = field(default_factory=dict)
    """Node on which workers died again and again while others did well → what happened there last."""
    logs: Path | None = None
    """Ray's logs, kept because a worker group broke down."""
    seconds: float = 0.0


def run(
    plan: Plan,
    experiment: Experiment,
    *,
    store: ArtifactStore,
    address: str | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    runners: Runners = Runners(),  # noqa: B008 - frozen
    num_cpus: int | None = None,
    steering: Steering | None = None,
) -> RunSummary:
    """Run all stages that are not in the store yet. Loads Ray only if there are any.

    Args:
        plan: the stages.
        experiment: its `resources` say what to run them on.
        store: where finished stages are, and go; must be reachable at the same place from every worker.
        address: of a running Ray cluster; `None` starts one on this machine.
        on_event: called in this thread with everything that happens, in order.
        should_stop: asked four times a second; once true, stages save their progress and the run ends.
        runners: what runs a stage.
        num_cpus: CPU cores of a cluster that is started here; `None` = those this process may use.
        steering: adds stages to the plan while it runs, and gives some up; `None` = the plan stays as it is.

    Raises:
        ResourceError: if the cluster is unreachable, is lost on the way, or does not have what `resources` or the
            conditions of measurement ask for.
    """
    began = time.monotonic()
    finished = status.finished(plan, store)
    missing = status.to_run(plan, finished) if steering is None else steering.wanted()
    to_run = {digest: stage for digest, stage in plan.stages.items() if digest in missing}
    summary = RunSummary(done_before=[digest for digest in plan.stages if digest in finished])
    if not to_run and (steering is None or steering.exhausted):
        on_event(RunStarted((), tuple(summary.done_before), lanes=0, dashboard_url=None))
        summary.seconds = time.monotonic() - began
        return summary
    try:
        with connect(address, num_cpus=num_cpus) as cluster:
            import ray

            there = nodes.alive()
            found, growth = list(there.values()), nodes.growth(there)
            offered = None if growth is None else [*found, *to_come(growth)]
            resources, parallel = experiment.resources, parallel_stages(to_run)
            if steering is None:
                if offered is not None and all(stage.alone for stage in to_run.values()):
                    check_measurements(to_run.values(), offered)
                train = [stage for stage in to_run.values() if not stage.alone]
                counts = {workers for stage in train for workers in worker_counts(stage, resources)}
                admission = admit(resources, found, stages=parallel, growth=growth, counts=tuple(counts))
                check_stages(to_run.values(), resources, offered)
            else:  # what it proposes is checked as it comes, and is no reason to give up the rest
                parallel = max(parallel, steering.side_by_side)
                admission = admit(resources, found, stages=parallel, growth=growth)
            on_event(RunStarted(tuple(to_run), tuple(summary.done_before), admission.lanes, cluster.dashboard_url))
            begun = _Run(
                plan,
                to_run,
                experiment,
                store,
                runners,
                cluster,
                admission,
                offered,
                on_event,
                should_stop,
                summary,
                steering,
            )
            try:
                begun.watch()
            except ray.exceptions.RayTaskError:  # a mistake in the queue
                raise
            except ray.exceptions.RayError as error:
                raise ResourceError(
                    f"the Ray cluster was lost on the way: {first_line(error)}. What is committed stays; once there is "
                    "a cluster again, the same command goes on"
                ) from error
            finally:
                begun.clear_up()
    except ClusterUnreachable as error:
        raise ResourceError(str(error)) from error
    summary.seconds = time.monotonic() - began
    return summary


class _Run:
    """The lanes of one run and the loop that watches them."""

    def __init__(
        self,
        plan: Plan,
        to_run: Collection[str],
        experiment: Experiment,
        store: ArtifactStore,
        runners: Runners,
        cluster: Connection,
        admission: Admission,
        offered: Sequence[Resources] | None,
        on_event: Callable[[Event], None],
        should_stop: Callable[[], bool],
        summary: RunSummary,
        steering: Steering | None,
    ) -> None:
        self._resources, self._cluster, self._admission = experiment.resources, cluster, admission
        self._on_event, self._should_stop, self._summary = on_event, should_stop, summary
        self._plan, self._store, self._notes = plan, store, FailureNotes(store)
        self._steering, self._offered = steering, offered
        wanted, refused = self._sort_out(plan, to_run)
        self._handed_out = set(to_run)
        """Stages that were to run so far."""
        minutes = experiment.resources.stage_deadline_minutes
        deadline_s = None if minutes is None else minutes * 60
        self._queue = queue_actor(
            *to_queue(plan, wanted, set(to_run) - wanted),
            refused,
            shares=Shares(partial(worker_counts, resources=self._resources) if self._resources.elastic else None),
            num_lanes=admission.lanes,
            budgets=Budgets(self._resources.max_retries, self._resources.max_preemptions),
            deadline_s=deadline_s,
            store=store,
            open_ended=steering is not None,
        )
        # Ray Train insists on a folder that all its nodes see, though nothing of ours goes there.
        self._folder = str(cluster.folder / "train") if cluster.started else store.scratch()
        common = LaneSpec(
            lane=-1,
            queue=self._queue,
            store=store,
            workers=0,
            resources=admission.worker,
            deadline_s=deadline_s,
            run_name=f"slimvit-{uuid.uuid4().hex[:12]}",
            folder=self._folder,
            runners=runners,
        )
        self._lanes = Lanes(common, admission, self._resources)
        self._barren = 0
        """Lanes in a row that ended with an error before their workers were ready."""
        self._deaths = 0
        self._looked_at = float("-inf")
        self._waits = False
        """Whether people were told that the run waits for nodes."""

    def watch(self) -> None:
        """Start lanes, pass events on, until everything is settled or the run was stopped."""
        import ray

        stop_at: float | None = None
        state = self._poll()
        self._look(state)
        if state.wanted:
            self._lanes.start_all(state)
        self._steer(state)
        while True:
            self._look(state)
            self._reap(state)
            state = self._poll()
            for worker in state.stuck:
                ray.kill(worker)
            changed = stop_at is None and self._steer(state)
            if not state.unsettled and not changed and (self._steering is None or self._steering.exhausted):
                break
            if stop_at is None and self._should_stop():
                ray.get(self._queue.stop.remote())
                stop_at = time.monotonic()
            elif stop_at is not None:
                if not state.busy or time.monotonic() - stop_at > _SAVE_PATIENCE_S:
                    self._summary.interrupted = True
                    break
            else:
                self._lanes.start_wanted(state)
                self._mind_room(state)
            time.sleep(_POLL_S)
        ray.get(self._queue.seal.remote())
        self._end(state, patience_s=_END_PATIENCE_S if stop_at is None else 3.0)
        if self._cluster.started and self._deaths and self._summary.failed:
            self._cluster.keep_folder = True
            self._summary.logs = self._cluster.folder / "session_latest" / "logs"

    def clear_up(self) -> None:
        """Give leases back and remove what lies outside the cluster's own folder, however the run ended."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._queue.close.remote(), timeout=_CLOSE_PATIENCE_S)
        if not self._cluster.started:
            with contextlib.suppress(OSError):  # a store that is away just now: `slimvit gc` finds it
                self._store.discard(self._folder)

    def _poll(self) -> QueueState:
        import ray

        state = cast(QueueState, ray.get(self._queue.poll.remote()))
        state = dataclasses.replace(state, events=tuple(map(_redacted, state.events)))
        for event in state.events:
            if isinstance(event, LaneUp):
                self._barren = 0
            elif isinstance(event, StageStarted):
                self._notes.drop(event.stage)
            elif isinstance(event, StageFinished):
                self._summary.finished.append(event.stage)
            elif isinstance(event, StageFound):
                self._notes.drop(event.stage)
                self._summary.found.append(event.stage)
            elif isinstance(event, StageFailed):
                self._summary.failed[event.stage] = event.reason
                self._notes.put(event.stage, self._plan.stages[event.stage].label, event.reason)
            elif isinstance(event, StageSkipped):
                self._summary.skipped[event.stage] = event.because_of
            elif isinstance(event, StageStopped):
                self._summary.stopped[event.stage] = event.reason
            elif isinstance(event, NodeExcluded):
                self._summary.excluded[event.node] = event.reason
            self._on_event(event)
        return state

    def _steer(self, state: QueueState) -> bool:
        """Do what the search says; whether it said something."""
        import ray

        change = None if self._steering is None else self._steering.step(state.events)
        if change is None:
            return False
        self._plan = change.plan
        new = [d for d in change.plan.stages if d in change.wanted and d not in self._handed_out]
        self._handed_out |= set(new)
        self._on_event(PlanGrew(change.plan, tuple(new)))
        wanted, refused = self._sort_out(change.plan, change.wanted)
        ray.get(self._queue.add.remote(*to_queue(change.plan, wanted, change.wanted - wanted), refused))
        if change.given_up:
            ray.get(self._queue.give_up.remote(change.given_up))
        return True

    def _sort_out(self, plan: Plan, wanted: Collection[str]) -> tuple[frozenset[str], dict[str, str]]:
        """What of the wanted stages goes to the queue, and which of them can never run, and why."""
        return sort_out(plan, wanted, lambda stage: never_runs(stage, self._resources, self._offered))

    def _look(self, state: QueueState) -> None:
        """Tell the queue where lanes could go now, and have a lane grow that could be larger."""
        import ray

        if time.monotonic() - self._looked_at < _LOOK_S:
            return
        self._looked_at = time.monotonic()
        before = self._lanes.there
        beside = self._lanes.look(state)
        if self._lanes.there != before:  # what did not start on the nodes that were there may on these
            self._barren = 0
        ray.get(self._queue.see.remote(beside, nodes.draining()))
        if (found := self._lanes.to_grow(state, beside)) is not None:
            ray.get(self._queue.move.remote(*found))

    def _reap(self, state: QueueState) -> None:
        """Take note of lanes that ended."""
        import ray

        for lane, error in self._lanes.ended(state):
            if error is None:
                ray.get(self._queue.left.remote(lane))
                self._on_event(LaneDown(lane, None))
                continue
            failure, ranks = of_group(error)
            failure = dataclasses.replace(failure, reason=redact(failure.reason))
            ray.get(self._queue.lost.remote(lane, failure, ranks))
            self._on_event(LaneDown(lane, failure.reason))
            if found_no_place(error):
                continue
            self._deaths += 1
            self._barren += 1
            if self._barren > self._resources.max_retries + self._admission.lanes:
                ray.get(self._queue.abandon.remote(f"no worker group stays alive; the last one: {failure.reason}"))

    def _mind_room(self, state: QueueState) -> None:
        """Say once that the run waits for nodes; give up when nobody brings any."""
        import ray

        reason = self._lanes.without_room(state)
        if reason is not None and not self._waits:
            self._on_event(NoRoom(reason))
        self._waits = reason is not None
        if self._lanes.waited_too_long(for_room=self._waits or not any(state.placed.values())):
            ray.get(self._queue.abandon.remote(reason or "no lane could be placed for half an hour"))

    def _end(self, state: QueueState, *, patience_s: float) -> None:
        """Let lanes end by themselves, so that their resources are free when this returns."""
        until = time.monotonic() + patience_s
        while len(self._lanes) and time.monotonic() < until:
            time.sleep(0.05)
            self._reap(state)


def _redacted(event: Event) -> Event:
    """The event as it may be said, kept and recorded: workers hold secrets that their errors may quote."""
    match event:
        case StageFailed() | StageRetried() | NodeExcluded():
            return dataclasses.replace(event, reason=redact(event.reason))
        case _:
            return event
