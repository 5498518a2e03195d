"""A wrong wall clock for the Python processes that have this folder on their path.

`time.time` and `time.time_ns` are off by the number of seconds in the file that SLIMVIT_CHAOS_CLOCK names, from when it
is there; the monotonic clock, `datetime` and programs that are not Python keep the right time.
"""

import os
import time

_FILE = os.environ.get("SLIMVIT_CHAOS_CLOCK")
_LOOK_S = 0.1

if _FILE:
    _seconds, _nanoseconds, _monotonic = time.time, time.time_ns, time.monotonic
    _offset, _looked_at = 0.0, float("-inf")

    def _wrong_by() -> float:
        global _offset, _looked_at
        if _monotonic() - _looked_at > _LOOK_S:
            _looked_at = _monotonic()
            try:
                with open(_FILE, encoding="ascii") as file:
                    _offset = float(file.read())
            except (OSError, ValueError):
                _offset = 0.0
        return _offset

    def _time() -> float:
        return _seconds() + _wrong_by()

    def _time_ns() -> int:
        return _nanoseconds() + int(_wrong_by() * 1e9)

    time.time, time.time_ns = _time, _time_ns
