"""Run a plan: start a cluster and lanes if there is anything to do, watch, and say what became of every stage."""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, cast

from cluster.connect import ClusterUnreachable, Connection, connect
from cluster.storage import ArtifactStore
from orchestrator.errors import ResourceError
from orchestrator.execution.admission import Admission, admit, check_measurements
from orchestrator.execution.events import (
    Event,
    LaneDown,
    LaneUp,
    PlanGrew,
    RunStarted,
    StageFailed,
    StageFinished,
    StageSkipped,
    StageStopped,
)
from orchestrator.execution.lane import LaneSpec, Runners, drive
from orchestrator.execution.queue import QueueState, StageQueue
from orchestrator.execution.steering import Change, Steering
from orchestrator.planning import status
from orchestrator.planning.plan import Plan, Stage
from specs.experiment import Experiment

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_POLL_S = 0.25
_SAVE_PATIENCE_S = 15.0
"""How long stages may take to save their progress after a stop, in seconds."""
_END_PATIENCE_S = 10.0
"""How long lanes may take to end once there is no more work, in seconds."""


@dataclass
class RunSummary:
    """What became of every stage."""

    finished: list[str] = field(default_factory=list)
    """Digests of stages that this run finished."""
    done_before: list[str] = field(default_factory=list)
    """Digests of stages that earlier runs finished."""
    failed: dict[str, str] = field(default_factory=dict)
    """Digest → reason."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Digest → digest of the failed stage that it needs."""
    stopped: dict[str, str] = field(default_factory=dict)
    """Digest of a stage that a search gave up → on what evidence."""
    interrupted: bool = False
    """Whether it was stopped before everything was settled; another run goes on."""
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
        store: where finished stages are, and go; must be reachable under the same path from every worker.
        address: of a running Ray cluster; `None` starts one on this machine.
        on_event: called in this thread with everything that happens, in order.
        should_stop: asked four times a second; once true, stages save their progress and the run ends.
        runners: what runs a stage.
        num_cpus: CPU cores of a cluster that is started here; `None` = those this process may use.
        steering: adds stages to the plan while it runs, and gives some up; `None` = the plan stays as it is.

    Raises:
        ResourceError: if the cluster is unreachable, or does not have what `resources` or the
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
            nodes = _nodes()
            if all(stage.alone for stage in to_run.values()):
                check_measurements(to_run.values(), nodes)
            side_by_side = max(_parallel_stages(to_run), 1 if steering is None else steering.side_by_side)
            admission = admit(experiment.resources, nodes, stages=side_by_side)
            check_measurements(to_run.values(), nodes)
            on_event(RunStarted(tuple(to_run), tuple(summary.done_before), admission.lanes, cluster.dashboard_url))
            begun = _Run(
                plan, to_run, experiment, store, runners, cluster, admission, on_event, should_stop, summary, steering
            )
            try:
                begun.watch()
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
        on_event: Callable[[Event], None],
        should_stop: Callable[[], bool],
        summary: RunSummary,
        steering: Steering | None,
    ) -> None:
        self._resources = experiment.resources
        self._store, self._runners, self._cluster, self._admission = store, runners, cluster, admission
        self._on_event, self._should_stop, self._summary = on_event, should_stop, summary
        self._steering = steering
        self._handed_out = set(to_run)
        """Stages that the queue was given to run."""
        minutes = experiment.resources.stage_deadline_minutes
        self._deadline_s = None if minutes is None else minutes * 60
        self._queue = _queue_actor(
            *_to_queue(plan, to_run),
            num_lanes=admission.lanes,
            max_retries=self._resources.max_retries,
            deadline_s=self._deadline_s,
            open_ended=steering is not None,
        )
        # Ray Train insists on a folder that all its nodes see, though nothing of ours goes there.
        self._folder = cluster.folder / "train" if cluster.started else store.scratch()
        self._id = uuid.uuid4().hex[:12]
        self._threads: dict[int, threading.Thread] = {}
        self._ended: SimpleQueue[tuple[int, Exception | None]] = SimpleQueue()
        self._num_starts = 0
        self._barren = 0
        """Lanes in a row that ended with an error before their workers were ready."""

    def watch(self) -> None:
        """Start lanes, pass events on, until everything is settled or the run was stopped."""
        import ray

        stop_at: float | None = None
        for lane in range(self._admission.lanes):  # all at once: most of their start is waiting
            self._start(lane)
        while True:
            self._reap()
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
                self._start_wanted(state)
            time.sleep(_POLL_S)
        ray.get(self._queue.close.remote())
        self._end(patience_s=_END_PATIENCE_S if stop_at is None else 3.0)

    def clear_up(self) -> None:
        """Remove what lies outside the cluster's own folder, however the run ended."""
        if not self._cluster.started:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _poll(self) -> QueueState:
        import ray

        state = cast(QueueState, ray.get(self._queue.poll.remote()))
        for event in state.events:
            if isinstance(event, LaneUp):
                self._barren = 0
            elif isinstance(event, StageFinished):
                self._summary.finished.append(event.stage)
            elif isinstance(event, StageFailed):
                self._summary.failed[event.stage] = event.reason
            elif isinstance(event, StageSkipped):
                self._summary.skipped[event.stage] = event.because_of
            elif isinstance(event, StageStopped):
                self._summary.stopped[event.stage] = event.reason
            self._on_event(event)
        return state

    def _steer(self, state: QueueState) -> bool:
        """Do what the search says; whether it said something."""
        import ray

        change: Change | None = None if self._steering is None else self._steering.step(state.events)
        if change is None:
            return False
        new = [d for d in change.plan.stages if d in change.wanted and d not in self._handed_out]
        self._handed_out |= set(new)
        self._on_event(PlanGrew(change.plan, tuple(new)))
        ray.get(self._queue.add.remote(*_to_queue(change.plan, change.wanted)))
        if change.given_up:
            ray.get(self._queue.give_up.remote(change.given_up))
        return True

    def _start(self, lane: int) -> None:
        self._num_starts += 1
        spec = LaneSpec(
            lane=lane,
            queue=self._queue,
            store=self._store,
            workers=self._resources.workers,
            resources=self._admission.worker,
            max_retries=self._resources.max_retries,
            deadline_s=self._deadline_s,
            run_name=f"slimvit-{self._id}-lane{lane}-{self._num_starts}",
            folder=self._folder,
            runners=self._runners,
        )
        thread = threading.Thread(target=self._drive, args=(spec,), name=f"slimvit-lane-{lane}", daemon=True)
        self._threads[lane] = thread
        thread.start()

    def _drive(self, spec: LaneSpec) -> None:
        try:
            drive(spec)
        except Exception as error:
            self._ended.put((spec.lane, error))
        else:
            self._ended.put((spec.lane, None))

    def _reap(self) -> None:
        """Take note of lanes that ended."""
        import ray

        while True:
            try:
                lane, error = self._ended.get_nowait()
            except Empty:
                return
            del self._threads[lane]
            reason = None if error is None else _reason(error)
            if reason is not None:
                if self._cluster.started:
                    self._cluster.keep_folder, self._summary.logs = (
                        True,
                        self._cluster.folder / "session_latest" / "logs",
                    )
                self._barren += 1
                ray.get(self._queue.lost.remote(lane, reason))
                if self._barren > self._resources.max_retries + self._admission.lanes:
                    ray.get(self._queue.abandon.remote(f"no worker group stays alive; the last one: {reason}"))
            self._on_event(LaneDown(lane, reason))

    def _start_wanted(self, state: QueueState) -> None:
        """Bring up lanes that ended while there was nothing to do for them, or with an error."""
        for lane in range(self._admission.lanes):
            if len(self._threads) >= state.wanted:
                return
            if lane not in self._threads:
                self._start(lane)

    def _end(self, *, patience_s: float) -> None:
        """Let lanes end by themselves, so that their resources are free when this returns."""
        until = time.monotonic() + patience_s
        while self._threads and time.monotonic() < until:
            time.sleep(0.05)
            self._reap()


def _to_queue(plan: Plan, to_run: Collection[str]) -> tuple[dict[str, Stage], list[str]]:
    """The stages to run and those that they read, parents first; and the digests of the latter, which are finished."""
    needed = {*to_run, *(parent for digest in to_run for parent in plan.stages[digest].parents)}
    stages = {digest: stage for digest, stage in plan.stages.items() if digest in needed}
    return stages, [digest for digest in stages if digest not in to_run]


def _queue_actor(stages: Mapping[str, Stage], done: list[str], **options: Any) -> ActorHandle[Any]:
    """The queue as an actor on this node: it lives and dies with this process."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(StageQueue)
    queue: ActorHandle[Any] = actor.options(num_cpus=0, scheduling_strategy=here).remote(stages, done, **options)
    return queue


def _nodes() -> list[dict[str, float]]:
    import ray

    nodes: Any = ray.nodes  # untyped
    return [node["Resources"] for node in nodes() if node["Alive"]]


def _parallel_stages(stages: Mapping[str, Stage]) -> int:
    """Upper bound of how many stages can run side by side: of a chain, one can."""
    depth: dict[str, int] = {}
    for digest, stage in stages.items():
        if not stage.alone:
            depth[digest] = 1 + max((depth[parent] for parent in stage.parents if parent in depth), default=0)
    return max(1, len(depth) - max(depth.values(), default=1) + 1)


def _reason(error: Exception) -> str:
    """One line of an error of Ray Train: what happened to the workers, without the logs around it."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        error = next(iter(failures.values()))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if failures is None and lines else lines[0] if lines else type(error).__name__)[:500]
