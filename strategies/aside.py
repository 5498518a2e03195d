"""Tokens that sit out some blocks: set aside, and later put back at their places, unchanged.

Shapes: R images, K tokens that go on, M tokens aside, N = K + M, D width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from strategies.state import Aside, State


def set_aside(state: State, going: Tensor, waiting: Tensor, until: int | None = None) -> State:
    """Let some tokens go on and the others wait.

    Args:
        state: dense, with nothing aside.
        going: positions of the tokens that go on [R, K] (int64), prefix tokens first.
        waiting: positions of the others [R, M] (int64); with `going`, every position once.
        until: block before which the loop puts them back; `None` = the caller does, at the latest the loop after the
            last block.
    """
    assert state.aside is None, "what is aside has to come back first"
    place = torch.cat([going, waiting], dim=1).argsort(dim=1)
    return replace(state.gather(going), aside=Aside(state.gather(waiting), place, state.source, until))


def rejoin(state: State, waited: Tensor | None = None) -> State:
    """Put the waiting tokens back at their places.

    Args:
        state: with tokens aside.
        waited: other values for them [R, M, D]; `None` = as they were.
    """
    assert state.aside is not None, "nothing is aside"
    tokens = state.aside.tokens

    def both(going: Tensor | None, waiting: Tensor | None) -> Tensor | None:
        return None if going is None or waiting is None else torch.cat([going, waiting], dim=1)

    whole = replace(
        state,
        x=torch.cat([state.x, tokens.x if waited is None else waited], dim=1),
        size=both(state.size, tokens.size),
        keep=both(state.keep, tokens.keep),
        position=both(state.position, tokens.position),
        attended=both(state.attended, tokens.attended),
        aside=None,
    )
    return replace(whole.gather(state.aside.place), source=state.aside.source)
