"""What a person reads while a plan runs."""

from __future__ import annotations

import io

from rich.console import Console

from orchestrator.execution.events import (
    Event,
    LaneDown,
    LaneUp,
    NodeExcluded,
    NoRoom,
    RunStarted,
    StageFailed,
    StageFinished,
    StageRetried,
    StageSkipped,
    StageStarted,
)
from orchestrator.execution.live import LiveView, PlainView, _duration, make_view
from orchestrator.training.interface import Progress
from tests.execution.plans import digest, measure, plan, train

PLAN = plan(train("teacher", epochs=3), train("a[x]", "teacher"), measure("a[x]"))
TEACHER, CHILD, MEASURE = digest("teacher"), digest("a[x]"), digest("measure a[x]")


def events() -> list[Event]:
    values = {"loss": 1.25, "images_per_s": 4321.0}
    return [
        RunStarted((TEACHER, CHILD, MEASURE), (), lanes=2, dashboard_url="http://127.0.0.1:8265"),
        LaneUp(0, ("host:1 cpu",)),
        StageStarted(TEACHER, 0, 1, 0.0),
        Progress("start", TEACHER, total_steps=30),
        Progress("step", TEACHER, step=5, total_steps=30, values=values),
        Progress("epoch", TEACHER, epoch=1, step=10, total_steps=30, values={**values, "val_top1": 56.78}),
        Progress("step", TEACHER, epoch=1, step=11, total_steps=30, values=values),
    ]


def ending() -> list[Event]:
    return [
        LaneDown(0, "node gone"),
        StageRetried(TEACHER, "node lost", "node gone", "retry elsewhere"),
        NodeExcluded("0123456789abcdef", "Xid 79 [GPU]"),
        NoRoom("a stage needs 2 workers"),
        StageStarted(TEACHER, 0, 2, 0.0),
        Progress("resumed", TEACHER, step=10),
        StageFinished(TEACHER, 0, 187.0),
        StageStarted(CHILD, 0, 1, 0.0),
        StageFailed(CHILD, "no images in `[/tmp]`"),
        StageSkipped(MEASURE, CHILD),
        LaneDown(0, None),
    ]


def terminal(*, is_terminal: bool) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=is_terminal, width=140, color_system=None, highlight=False), text


def test_plain_lines() -> None:
    console, text = terminal(is_terminal=False)
    with make_view(PLAN, console, plain=False) as view:
        assert isinstance(view, PlainView)
        for event in events() + ending():
            view.on_event(event)
        view.stopping()
    lines = [line.split("] ", 1)[1] for line in text.getvalue().splitlines()]
    assert lines[0] == "3 stages to run, 0 done before; 2 lanes; Ray dashboard http://127.0.0.1:8265"
    assert lines[2] == "teacher: started on lane 0"
    assert lines[3].startswith("teacher: epoch 1/3, images/s 4,321, loss 1.250, top-1 % 56.8, left ")
    assert "lane 0 lost: node gone" in lines
    assert "teacher: will be begun again elsewhere (node lost): node gone" in lines
    assert any(line.startswith("node 0123456789ab is not used any more") for line in lines)
    assert "waiting: a stage needs 2 workers" in lines
    assert "teacher: started again (attempt 2) on lane 0" in lines
    assert "teacher: goes on from step 10" in lines
    assert "teacher: finished in 3:07 (1/3)" in lines
    assert "a[x]: FAILED: no images in `[/tmp]`" in lines
    assert "measure a[x]: skipped, because a[x] failed" in lines
    assert lines[-1].startswith("stopping")


def test_live_view() -> None:
    console, text = terminal(is_terminal=True)
    with make_view(PLAN, console, plain=False) as view:
        assert isinstance(view, LiveView)
        for event in events():
            view.on_event(event)
        with console.capture() as capture:
            console.print(view._render())
        shown = capture.get()
        for event in ending():
            view.on_event(event)
        view.stopping()
        with console.capture() as capture:
            console.print(view._render())
        shown_at_last = capture.get()
    for words in ("Ray dashboard  http://127.0.0.1:8265", "teacher", "epoch 2/3", "4,321", "56.8"):
        assert words in shown
    assert "0/3 stages" in shown
    assert "1/3 stages, 1 failed, 1 skipped" in shown_at_last
    assert "Ctrl-C again" in shown_at_last
    assert "no images in `[/tmp]`" in text.getvalue(), "brackets of a message are no markup"
    assert "Xid 79 [GPU]" in text.getvalue()
    assert "a stage needs 2 workers" in text.getvalue()


def test_plain_is_a_wish_that_counts() -> None:
    console, _ = terminal(is_terminal=True)
    assert isinstance(make_view(PLAN, console, plain=True), PlainView)


def test_durations() -> None:
    assert [_duration(s) for s in (4.21, 59.9, 60, 187, 7387)] == ["4.2 s", "59.9 s", "1:00", "3:07", "2:03:07"]


def test_labels_hold_no_pictures() -> None:
    """rich makes a picture of a name between two colons."""
    stage = measure("train")
    shown = plan(train("train"), stage.model_copy(update={"label": "measure:train"}))
    for is_terminal in (False, True):
        console, text = terminal(is_terminal=is_terminal)
        with make_view(shown, console, plain=not is_terminal) as view:
            view.on_event(RunStarted((stage.digest,), (), lanes=1, dashboard_url=None))
            view.on_event(StageStarted(stage.digest, 0, 1, 0.0))
            view.on_event(StageFailed(stage.digest, "no :train: here"))
        assert "measure:train: " in text.getvalue()
        assert "no :train: here" in text.getvalue()
