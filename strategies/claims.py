"""Gather all claims, then report every conflict at once. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from strategies.api import Claim, Claims, OptionError, Strategy
from strategies.facts import Facts


def conflicts(strategies: Sequence[Strategy[Any]], facts: Facts) -> list[str]:
    """Why these strategies cannot act together on this network; empty if they can.

    Each reason names both strategies (or the strategy and what the network lacks), the blocks, and the way out.
    """
    raise NotImplementedError(Claim, Claims, OptionError)
