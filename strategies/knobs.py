"""Knobs: options that can be turned on a trained network, and the settings at which it is measured.

Turning a knob is composing the same weights with another value of one option, so there is nothing to undo, and claims
are checked as for any network. Loads no torch: settings are chosen, and refused, while planning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import TypeAdapter, ValidationError

from specs.problems import listed, nearest
from strategies import registry
from strategies.api import Strategy
from strategies.claims import conflicts, left_by
from strategies.facts import Facts

if TYPE_CHECKING:
    from strategies.backbone import Student

Sweeps = dict[str, list[float]]
"""Knob, as `<strategy>.<option>` → settings, ascending; the trained one is among them, unless a target finds it."""


def knob_of(strategy: Strategy[Any]) -> str | None:
    """`<strategy>.<option>`; `None` if the strategy has no knob, or was given something else for it than a number or a
    target."""
    if strategy.knob is None or (trained_setting(strategy) is None and not _aimed(strategy)):
        return None
    return f"{strategy.name}.{strategy.knob}"


def trained_setting(strategy: Strategy[Any]) -> float | None:
    """The knob's value in the strategy's options; `None` if it is no number (a list with a value for each block), or
    will be found in training."""
    value = getattr(strategy.config, strategy.knob) if strategy.knob else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def found_setting(strategy: Strategy[Any], network: Student) -> float | None:
    """The knob's value in a trained network: what its options say, or what training found."""
    ways = strategy.ways_out(network)
    return trained_setting(strategy) if ways is None else ways.threshold


def _aimed(strategy: Strategy[Any]) -> bool:
    """Whether training finds the knob's setting."""
    return any(getattr(strategy.config, option) is not None for option in strategy.targets)


def turned(strategy: Strategy[Any], setting: float) -> Strategy[Any]:
    """The same strategy with its knob at another setting.

    Raises:
        ValidationError: if the option does not take this value.
    """
    assert strategy.knob is not None
    options = strategy.config.model_dump(mode="json", exclude=set(strategy.targets))
    options |= {strategy.knob: _as_written(setting)}
    return type(strategy)(strategy.Config.model_validate_json(json.dumps(options)))


def sweeps_of(
    strategies: Sequence[Strategy[Any]], facts: Facts, wanted: Mapping[str, Sequence[float]] | None
) -> tuple[Sweeps, list[str]]:
    """Settings of every knob that these strategies have, each turned alone.

    Args:
        strategies: all that act in the network.
        facts: what `claims` sees.
        wanted: knob → settings, checked by `check_wanted`; `None` = the strategies' own sweeps, without what this
            network cannot do.

    Returns:
        The sweeps, and why wanted settings are impossible in this network.
    """
    sweeps: Sweeps = {}
    impossible: list[str] = []
    for i, strategy in enumerate(strategies):
        knob, trained = knob_of(strategy), trained_setting(strategy)
        if knob is None or not strategy.deployed:
            continue
        asked = strategy.sweep(left_by(strategies, facts)) if wanted is None else wanted.get(knob, ())
        possible = set() if trained is None else {trained}
        for setting in sorted({float(s) for s in asked} - possible):
            try:
                others = [*strategies[:i], turned(strategy, setting), *strategies[i + 1 :]]
                reasons = conflicts(others, facts)
            except ValidationError as error:  # options that do not go together
                reasons = [error.errors(include_url=False)[0]["msg"]]
            if not reasons:
                possible.add(setting)
            elif wanted is not None:
                impossible += [f"`{knob}` at {setting:g}: {reason}" for reason in reasons]
        if len(possible) > 1 or (possible and trained is None):
            sweeps[knob] = sorted(possible)
    return sweeps, impossible


def check_wanted(wanted: Mapping[str, Sequence[float]]) -> list[str]:
    """What no network could do of the settings in a spec: unknown strategies and options, values out of range."""
    problems: list[str] = []
    for knob, settings in wanted.items():
        name, _, option = knob.partition(".")
        try:
            strategy = registry.load(name)
        except registry.StrategyUnavailable as error:
            problems.append(f"`{knob}`: {error}")
            continue
        if strategy.knob is None:
            problems.append(f"`{knob}`: `{name}` has no option that can be turned after training. {_known()}")
        elif option != strategy.knob:
            near = f"did you mean `{name}.{strategy.knob}`? " if nearest(option, [strategy.knob]) else ""
            problems.append(f"`{knob}`: only `{name}.{strategy.knob}` can be turned after training; {near}{_known()}")
        else:
            problems += [f"`{knob}`: {text}" for s in settings if (text := _refusal(strategy, float(s))) is not None]
    return problems


def _refusal(strategy: type[Strategy[Any]], setting: float) -> str | None:
    """Why the option takes no such value."""
    assert strategy.knob is not None
    field = strategy.Config.model_fields[strategy.knob]
    bounds = tuple(field.metadata)
    kind: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, *bounds] if bounds else field.annotation)  # type: ignore[arg-type]  # made here
    try:
        kind.validate_json(json.dumps(_as_written(setting)), strict=True)
    except ValidationError as error:
        wanted = error.errors(include_url=False)[0]["msg"].removeprefix("Input should be ")
        return f"{setting:g} is impossible; allowed: {wanted}. Write another value, or leave it out."
    return None


def _known() -> str:
    """All knobs there are."""
    found = ((name, registry.load(name).knob) for name in registry.builtin_names())
    return f"Knobs: {listed(f'{name}.{option}' for name, option in found if option)}."


def _as_written(setting: float) -> float | int:
    """Whole numbers without a point, because options that count are strict about it."""
    return int(setting) if float(setting).is_integer() else setting
