"""What a person sees while a plan runs: a live view in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.execution.events import (
    Event,
    LaneDown,
    LaneUp,
    NodeExcluded,
    NoRoom,
    PlanGrew,
    RunStarted,
    StageElsewhere,
    StageFailed,
    StageFinished,
    StageFound,
    StageRetried,
    StageSkipped,
    StageStarted,
    StageStopped,
    StoreSilent,
)
from orchestrator.planning.plan import Plan
from orchestrator.training.interface import Progress
from specs.words import counted

_BAR_WIDTH = 24
_QUIET_S = 30.0
"""Without an epoch's end in sight, plain lines show progress this often, in seconds."""


class View(Protocol):
    """Something that shows events."""

    def on_event(self, event: Event) -> None:
        """Take note of what happened."""
        ...

    def stopping(self) -> None:
        """Ctrl-C was pressed once."""
        ...

    def __enter__(self) -> View: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_view(plan: Plan, console: Console, *, plain: bool) -> View:
    """The live view if the console is a terminal and nobody asked for plain lines.

    Args:
        plan: for the names of the stages.
        console: where it is shown.
        plain: lines even in a terminal.
    """
    if plain or not console.is_terminal:
        return PlainView(plan, console)
    return LiveView(plan, console)


@dataclass
class StageProgress:
    """How far one stage is."""

    label: str
    epochs: int
    since: float = field(default_factory=time.monotonic)
    """When the first step of this attempt was seen."""
    first_step: int = 0
    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    values: dict[str, float] = field(default_factory=dict)

    def update(self, progress: Progress) -> None:
        """Take in what the trainer says."""
        if progress.kind in ("start", "resumed"):
            self.since, self.first_step = time.monotonic(), progress.step
        # `epoch` counts finished ones: at its end it is the one that is shown, after that the next is.
        self.epoch = min(progress.epoch + (progress.kind != "epoch"), self.epochs)
        self.step = progress.step
        self.total_steps = progress.total_steps or self.total_steps
        self.values |= progress.values

    @property
    def seconds_left(self) -> float | None:
        """From the speed of this attempt so far; `None` before its first step."""
        done = self.step - self.first_step
        if done <= 0 or not self.total_steps:
            return None
        return (time.monotonic() - self.since) / done * (self.total_steps - self.step)

    def facts(self) -> list[tuple[str, str]]:
        """(name, text) of what is known, in the order of display."""
        found = []
        if self.epochs:
            found.append(("epoch", f"{self.epoch}/{self.epochs}"))
        for key, name, form in (
            ("images_per_s", "images/s", ",.0f"),
            ("loss", "loss", ".3f"),
            ("val_top1", "top-1 %", ".1f"),
        ):
            if key in self.values:
                found.append((name, format(self.values[key], form)))
        if (left := self.seconds_left) is not None:
            found.append(("left", _duration(left)))
        return found


class _State:
    """What all views keep: names, counts, and the progress of the stages at work."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.began = time.monotonic()
        self.running: dict[str, StageProgress] = {}
        self.elsewhere: dict[str, StageElsewhere] = {}
        self.total = self.done_before = self.finished = self.failed = self.skipped = self.stopped = 0

    def label(self, digest: str) -> str:
        return self.plan.stages[digest].label

    def take(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.total, self.done_before = len(event.to_run), len(event.done)
        elif isinstance(event, StageStarted):
            stage = self.plan.stages[event.stage]
            self.elsewhere.pop(event.stage, None)
            self.running[event.stage] = StageProgress(stage.label, stage.epochs)
        elif isinstance(event, Progress):
            if event.stage in self.running:
                self.running[event.stage].update(event)
        elif isinstance(event, StageFinished):
            self.running.pop(event.stage, None)
            self.finished += 1
        elif isinstance(event, StageElsewhere):
            self.running.pop(event.stage, None)
            self.elsewhere[event.stage] = event
        elif isinstance(event, StageFound):
            self.elsewhere.pop(event.stage, None)
            self.finished += 1
        elif isinstance(event, StageFailed):
            self.running.pop(event.stage, None)
            self.failed += 1
        elif isinstance(event, StageSkipped):
            self.skipped += 1
        elif isinstance(event, StageStopped):
            self.running.pop(event.stage, None)
            self.stopped += 1
        elif isinstance(event, PlanGrew):
            self.plan = event.plan
            self.total += len(event.to_run)


class PlainView:
    """One line for each thing worth a line; for logs and pipes."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self._state, self._console = _State(plan), console
        self._last_line: dict[str, float] = {}

    def __enter__(self) -> PlainView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to take down."""

    def stopping(self) -> None:
        """Ctrl-C was pressed once."""
        self._line("stopping: stages save their progress; once more to stop at once")

    def on_event(self, event: Event) -> None:
        """Print a line, if it is worth one."""
        self._state.take(event)
        if isinstance(event, Progress):
            self._progress(event)
        elif text := self._text(event):
            self._line(text)

    def _text(self, event: Event) -> str | None:
        state = self._state
        if isinstance(event, RunStarted) and event.to_run:
            stages, lanes = counted(len(event.to_run), "stage"), counted(event.lanes, "lane")
            return f"{stages} to run, {len(event.done)} done before; {lanes}" + (
                f"; Ray dashboard {event.dashboard_url}" if event.dashboard_url else ""
            )
        if isinstance(event, LaneUp):
            return f"lane {event.lane} ready: {', '.join(event.workers)}"
        if isinstance(event, LaneDown) and event.reason:
            return f"lane {event.lane} lost: {event.reason}"
        if isinstance(event, NoRoom):
            return f"waiting: {event.reason}"
        if isinstance(event, StageRetried):
            where = " elsewhere" if event.action == "retry elsewhere" else ""
            return f"{state.label(event.stage)}: will be begun again{where} ({event.kind}): {event.reason}"
        if isinstance(event, NodeExcluded):
            return excluded_text(event.node, event.reason)
        if isinstance(event, StageStarted):
            again = f" again (attempt {event.attempt})" if event.attempt > 1 else ""
            return f"{state.label(event.stage)}: started{again} on lane {event.lane}"
        if isinstance(event, StageFinished):
            count = f"{state.finished}/{state.total}"
            return f"{state.label(event.stage)}: finished in {_duration(event.seconds)} ({count})"
        if isinstance(event, StageFailed):
            return f"{state.label(event.stage)}: FAILED: {event.reason}"
        if isinstance(event, StageElsewhere):
            return f"{state.label(event.stage)}: {_elsewhere(event)}; waiting for it"
        if isinstance(event, StageFound):
            return f"{state.label(event.stage)}: finished by another run ({state.finished}/{state.total})"
        if isinstance(event, StoreSilent):
            return f"no new stage can begin: {event.reason}"
        if isinstance(event, StageSkipped):
            return f"{state.label(event.stage)}: skipped, because {state.label(event.because_of)} failed"
        if isinstance(event, StageStopped):
            return f"{state.label(event.stage)}: given up: {event.reason}"
        if isinstance(event, PlanGrew) and (search := event.plan.search) is not None and event.to_run:
            return f"search: {search.proposed} of {search.num_trials} trials proposed, {search.judged} judged"
        return None

    def _progress(self, event: Progress) -> None:
        stage = self._state.running.get(event.stage)
        if stage is None:
            return
        last = self._last_line.setdefault(event.stage, time.monotonic())
        if event.kind == "resumed":
            self._line(f"{stage.label}: goes on from step {event.step}")
        elif event.kind == "epoch" or time.monotonic() - last > _QUIET_S:
            facts = ", ".join(f"{name} {text}" for name, text in stage.facts())
            self._line(f"{stage.label}: {facts or f'step {event.step}'}")
        else:
            return
        self._last_line[event.stage] = time.monotonic()

    def _line(self, text: str) -> None:
        elapsed = time.monotonic() - self._state.began
        self._console.print(f"[{elapsed:7.1f} s] {text}", markup=False, emoji=False, highlight=False, soft_wrap=True)


class LiveView:
    """A header, a bar for each stage at work, and counts; what failed scrolls by above."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self._state, self._console = _State(plan), console
        self._dashboard_url: str | None = None
        self._lanes_up = 0
        self._stopping = False
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last picture on the screen."""
        self._live.stop()

    def stopping(self) -> None:
        """Ctrl-C was pressed once."""
        self._stopping = True

    def on_event(self, event: Event) -> None:
        """Take note; the picture is redrawn four times a second."""
        self._state.take(event)
        label = self._state.label
        if isinstance(event, RunStarted):
            self._dashboard_url = event.dashboard_url
        elif isinstance(event, LaneUp):
            self._lanes_up += 1
        elif isinstance(event, LaneDown) and event.reason:
            self._say(f"[yellow]lane {event.lane} lost[/]: {escape(event.reason)}")
        elif isinstance(event, NoRoom):
            self._say(f"[yellow]waiting[/]: {escape(event.reason)}")
        elif isinstance(event, StageRetried):
            self._say(f"[yellow]again[/]  {escape(label(event.stage))} ({event.kind}): {escape(event.reason)}")
        elif isinstance(event, NodeExcluded):
            self._say(f"[yellow]node[/]   {escape(excluded_text(event.node, event.reason))}")
        elif isinstance(event, StageFinished):
            self._say(f"[green]done[/]   {escape(label(event.stage))}  {_duration(event.seconds)}")
        elif isinstance(event, StageFound):
            self._say(f"[green]done[/]   {escape(label(event.stage))}  by another run")
        elif isinstance(event, StoreSilent):
            self._say(f"[yellow]waiting[/] no new stage can begin: {escape(event.reason)}")
        elif isinstance(event, StageFailed):
            self._say(f"[red]failed[/] {escape(label(event.stage))}: {escape(event.reason)}")
        elif isinstance(event, StageStopped):
            self._say(f"[yellow]given up[/] {escape(label(event.stage))}: {escape(event.reason)}")

    def _say(self, markup: str) -> None:
        self._console.print(markup, emoji=False, highlight=False)

    def _render(self) -> RenderableType:
        state = self._state
        parts: list[RenderableType] = []
        if self._dashboard_url:
            parts.append(Text(f"Ray dashboard  {self._dashboard_url}", style="dim"))
        table = Table.grid(padding=(0, 2))
        for stage in list(state.running.values()):
            total = stage.total_steps or None
            bar = ProgressBar(total=total, completed=stage.step, width=_BAR_WIDTH, pulse=total is None)
            facts = "  ".join(f"{name} {text}" for name, text in stage.facts())
            table.add_row(Text(stage.label, overflow="ellipsis", no_wrap=True), bar, Text(facts, no_wrap=True))
        for event in list(state.elsewhere.values()):
            table.add_row(Text(state.label(event.stage), no_wrap=True), "", Text(_elsewhere(event), style="dim"))
        parts.append(table)
        counts = f"{state.finished}/{state.total} stages"
        if state.done_before:
            counts += f", {state.done_before} done before"
        if state.failed:
            counts += f", {state.failed} failed, {state.skipped} skipped"
        if state.stopped:
            counts += f", {state.stopped} given up"
        waiting = "" if self._lanes_up or not state.total else "  starting workers …"
        line = Text(f"{counts}  {_duration(time.monotonic() - state.began)}{waiting}")
        if self._stopping:
            line.append("  stopping: stages save their progress; Ctrl-C again to stop at once", style="yellow")
        return Group(*parts, line)


def _elsewhere(event: StageElsewhere) -> str:
    return f"computed by {event.host} since {time.strftime('%H:%M:%S', time.localtime(event.since))}"


def excluded_text(node: str, reason: str) -> str:
    """What a person reads of a node that is not used any more."""
    return f"node {node[:12]} is not used any more: workers died on it while others did well; the last time: {reason}"


def _duration(seconds: float) -> str:
    """`4.2 s`, `3:07` or `2:03:07`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
