"""Names from content: the digest of what determines a stage's output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

FORMAT = 1
"""Raised when the parts of a digest change their meaning."""
TRAINING_VERSION = 2
"""Raised whenever the training loop gives other numbers from the same stage; part of every training stage's digest."""
MEASUREMENT_VERSION = 3
"""Raised whenever measuring gives other numbers; part of every measurement's digest."""


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(parts: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON, 64 hex digits."""
    return hashlib.sha256(canonical(parts).encode()).hexdigest()
