"""Who is at which stage: what a lease says, and when it may be taken over. Pure; knows no store.

A lease is one small record in the store's register. Its holder writes it anew every `BEAT_S` seconds. Whoever finds
one that is not renewed takes it over with a greater token, by a write that succeeds only if nobody wrote in between.
The old holder finds out at its next renewal, and stops. What it still commits meanwhile does no harm: artefacts are
named by what determines their content, and the first commit of a name stands.

No machine's clock is trusted alone. A record that does not change for `TTL_S` on the watcher's own monotonic clock has
no living holder, whatever the date is. Where the store's clock says that a record is old already, a shorter watch
confirms it, so that a jump of that clock takes no lease from a holder that renews it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Literal, NamedTuple, Protocol

from cluster.process import Process

TTL_S = 60.0
"""A holder that has not renewed its lease for so long has lost it."""
BEAT_S = 10.0
"""How often a holder renews."""
CONFIRM_BEATS = 2.5
"""How long a record is watched, in renewals, before the store's clock is believed that it is old."""


@dataclass(frozen=True)
class Record:
    """One holder's claim to one stage."""

    holder: str
    """Unique to the run that holds it."""
    process: Process
    """Where it runs; shown, and asked for where it runs on this machine."""
    since: float
    """When it was taken, in seconds since the epoch by the holder's clock; for people only."""
    token: int
    """Grows with every holder of the same name."""
    beat: int = 0
    """Grows with every renewal."""
    released: bool = False
    """The holder gave it up; the record stays, so that tokens go on growing."""

    def renewed(self) -> Record:
        """The same, one beat later."""
        return replace(self, beat=self.beat + 1)

    def encode(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str | bytes) -> Record | None:
        """From JSON; `None` for what a killed writer left half written."""
        try:
            found = json.loads(text)
            return cls(
                holder=str(found["holder"]),
                process=Process(**found["process"]),
                since=float(found["since"]),
                token=int(found["token"]),
                beat=int(found["beat"]),
                released=bool(found["released"]),
            )
        except (ValueError, KeyError, TypeError):
            return None


class Entry(NamedTuple):
    """A record as it lies in a register."""

    record: Record | None
    """`None` if it cannot be read."""
    version: str
    """Changes with every write."""
    age_s: float
    """Seconds since that write, by the store's own clock."""


class Register(Protocol):
    """Small records that are written only if nobody else wrote in between.

    Raises:
        OSError: in all methods, if the store cannot be reached.
    """

    def read(self, name: str) -> Entry | None:
        """The record of a name; `None` if there is none."""
        ...

    def write(self, name: str, record: Record, version: str | None) -> str | None:
        """Replace the version that was read (`None`: there was none).

        Returns:
            The new version, or `None` if somebody else was faster.
        """
        ...

    def remove(self, name: str) -> None:
        """Take a name out, once nobody will ever want it again. Missing is fine."""
        ...

    def names(self) -> list[str]:
        """All names with a record, released ones included."""
        ...


Verdict = Literal["free", "mine", "held", "expired"]


def judge(
    entry: Entry | None,
    me: str,
    *,
    watched_s: float,
    holder_gone: bool,
    ttl_s: float = TTL_S,
    beat_s: float = BEAT_S,
) -> Verdict:
    """Whether a lease can be had.

    Args:
        entry: what the register holds.
        me: the holder that asks.
        watched_s: for how long the asker has seen this very version, on its monotonic clock.
        holder_gone: the holder is known to be dead (its process ran on this machine and is not there any more).
        ttl_s: after so long without renewal, a lease is lost.
        beat_s: time between two renewals.
    """
    if entry is None:
        return "free"
    record = entry.record
    if record is not None and record.released:
        return "free"
    if record is not None and record.holder == me:
        return "mine"
    if holder_gone or watched_s >= ttl_s:
        return "expired"
    if entry.age_s >= ttl_s and watched_s >= CONFIRM_BEATS * beat_s:
        return "expired"
    return "held"
