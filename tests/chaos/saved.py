"""What of unfinished stages is saved at any moment, seen from outside, and what a kill therefore costs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from cluster.storage import MARKER, ArtifactStore
from tests.chaos.grid import Said

_LOOK_S = 0.05


class Saved:
    """Looks for progress in a store for the time of a `with` block.

    Args:
        store: on a disk, looked at all the time; in a bucket, only when asked.
        folder: of a store on a disk.
    """

    def __init__(self, store: ArtifactStore, folder: Path | None) -> None:
        self._store, self._folder = store, folder
        self._times: dict[str, dict[int, float]] = defaultdict(dict)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Saved:
        if self._folder is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._folder is not None:
            self._thread.join()

    def now(self) -> dict[str, tuple[int, float]]:
        """Stage → step of its newest checkpoint, and when that was committed (seconds since the epoch)."""
        if self._folder is not None:
            found = self._look()
        else:
            found = [(*name.split("/")[1:], time.time()) for name in self._store.names("progress")]  # type: ignore[misc]
        newest: dict[str, tuple[int, float]] = {}
        for digest, step, at in found:
            newest[digest] = max(newest.get(digest, (0, 0.0)), (int(step), at))
        return newest

    def intervals(self, digest: str, begun: list[float]) -> list[float]:
        """Seconds from each start of a stage, or checkpoint, to the checkpoint after it."""
        commits = sorted(self._times[digest].values())
        found = []
        for at in commits:
            before = max((t for t in (*begun, *commits) if t < at), default=None)
            found += [] if before is None else [at - before]
        return found

    def _watch(self) -> None:
        while not self._end.wait(_LOOK_S):
            self._look()

    def _look(self) -> list[tuple[str, str, float]]:
        assert self._folder is not None
        found = []
        for marker in self._folder.glob(f"progress/*/[0-9]*/{MARKER}"):  # not those that are still arriving
            with contextlib.suppress(OSError):  # deleted meanwhile
                step, digest, at = marker.parent.name, marker.parent.parent.name, marker.stat().st_mtime
                found.append((digest, step, at))
                self._times[digest][int(step)] = at
        return found


@dataclass(frozen=True)
class Lost:
    """What one kill cost one stage."""

    label: str
    seconds: float
    """From its newest checkpoint (or its start) to the kill: what had to be done again."""
    interval_s: float | None
    """The longest time between two of its checkpoints."""
    saved_step: int
    """Of its newest checkpoint when the kill came."""
    resumed_step: int
    """From which it went on."""


def lost_to(
    at: float, saved: dict[str, tuple[int, float]], said: list[Said], digests: dict[str, str], watch: Saved
) -> list[Lost]:
    """What was lost to a kill.

    Args:
        at: when it came, in seconds since the epoch.
        saved: what was saved just before.
        said: what the runs told before and after.
        digests: of the stages, by label.
        watch: for the times between checkpoints.
    """
    found = []
    for label, digest in digests.items():
        own = [s for s in said if s.label == label]
        before, after = [s for s in own if s.at <= at], [s for s in own if s.at > at]
        again = next((i for i, s in enumerate(after) if s.kind == "begun"), None)
        done = next((i for i, s in enumerate(after) if s.kind == "done"), len(after))
        if not before or before[-1].kind == "done" or again is None or again > done:
            continue  # it was not under way, or not touched
        follows = after[again + 1] if again + 1 < len(after) else None
        resumed = follows.step if follows is not None and follows.kind == "resumed" else 0
        begun = [s.at for s in own if s.kind == "begun"]
        step, committed_at = saved.get(digest, (0, 0.0))
        since = committed_at if step else max(t for t in begun if t <= at)
        interval = max(watch.intervals(digest, begun), default=None)
        found.append(Lost(label, max(0.0, at - since), interval, step, resumed))
    return found
