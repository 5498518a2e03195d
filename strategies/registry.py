"""Strategies by name, through the entry points of installed packages. Importing this module loads no torch.

A package offers a strategy by one line in its `pyproject.toml`; the built-in ones use the same door:

    [project.entry-points."slimvit.strategies"]
    token_merging = "strategies.dynamic.token_merging:TokenMerging"

Only strategies that a spec names are imported.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, get_args, get_origin

from specs.problems import listed, nearest
from specs.strategy import StrategyConfig
from strategies.api import Kind, Strategy

GROUP = "slimvit.strategies"


class StrategyUnavailable(ValueError):
    """A strategy that is not registered, is registered twice, or cannot be loaded.

    Attributes:
        nearest: the nearest registered name, or `None`.
        way_out: what to do.
    """

    def __init__(self, message: str, way_out: str, near: str | None = None) -> None:
        super().__init__(message, way_out, near)
        self.way_out, self.nearest = way_out, near

    def __str__(self) -> str:
        near = f"did you mean `{self.nearest}`? " if self.nearest else ""
        return f"{self.args[0]}; {near}{self.way_out}"


def names() -> list[str]:
    """Names of all registered strategies, sorted."""
    return sorted(_registered(tuple(sys.path)))


def builtin_names() -> list[str]:
    """Names of the strategies that slimvit itself brings, sorted."""
    found = _registered(tuple(sys.path))
    return sorted(n for n, entries in found.items() if any(e.dist and e.dist.name == "slimvit" for e in entries))


def load(name: str) -> type[Strategy[Any]]:
    """Import the strategy of this name.

    Raises:
        StrategyUnavailable: a `ValueError`, if there is none, if two packages offer it, or if it cannot be used.
    """
    found = _registered(tuple(sys.path)).get(name)
    if found is None:
        known = names()
        raise StrategyUnavailable(
            f"there is no strategy `{name}`", f"Registered strategies: {listed(known)}.", nearest(name, known)
        )
    if len(found) > 1:
        owners = " and ".join(sorted(_owner(entry) for entry in found))
        raise StrategyUnavailable(
            f"two packages offer a strategy `{name}`: {owners}", "Uninstall one of them, or rename its entry point."
        )
    return _load(found[0])


def resolver(name: str) -> type[StrategyConfig]:
    """Options type of the strategy of this name, for `specs.load`; raises as `load` does."""
    return load(name).Config


def build(config: StrategyConfig) -> Strategy[Any]:
    """The strategy that these options describe; raises as `load` does."""
    return load(config.name)(config)


@cache
def _registered(search_path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    """Entry points by name. Keyed by `sys.path`, which is what they are found on."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entry_points(group=GROUP):
        found[entry.name] = (*found.get(entry.name, ()), entry)
    return found


@cache
def _load(entry: EntryPoint) -> type[Strategy[Any]]:
    where = f"the strategy `{entry.name}` of {_owner(entry)}"
    try:
        strategy = entry.load()
    except Exception as error:  # the package's own code, which may raise anything
        problem = f"{where} cannot be imported: {type(error).__name__}: {error}"
        raise StrategyUnavailable(problem, "Mend or reinstall that package, or remove the strategy.") from error
    lack = _unfit(strategy, entry.name)
    if lack:
        raise StrategyUnavailable(f"{where} {lack}", "Mend that package; `docs/writing-a-strategy.md` says how.")
    result: type[Strategy[Any]] = strategy
    return result


def _unfit(strategy: Any, name: str) -> str | None:
    """What a registered object lacks to be a strategy."""
    if not (isinstance(strategy, type) and issubclass(strategy, Strategy)):
        return "is no subclass of `strategies.api.Strategy`"
    if getattr(strategy, "kind", None) not in get_args(Kind):
        return f"has no `kind`, one of {listed(get_args(Kind))}"
    if not isinstance(getattr(strategy, "paper", None), str):
        return "names no `paper`"
    options = getattr(strategy, "Config", None)
    if not (isinstance(options, type) and issubclass(options, StrategyConfig)):
        return "has no `Config` that is a subclass of `specs.strategy.StrategyConfig`"
    if strategy.knob is not None and strategy.knob not in options.model_fields:
        return f"has the `knob` {strategy.knob!r}, which is no option of its `Config`"
    for target in strategy.targets:
        if target not in options.model_fields:
            return f"has {target!r} among its `targets`, which is no option of its `Config`"
    annotation = options.model_fields["name"].annotation
    if get_origin(annotation) is not Literal or get_args(annotation) != (name,):
        return f"has a `Config` whose `name` is not `Literal[{name!r}]`"
    return None


def _owner(entry: EntryPoint) -> str:
    package = entry.dist.name if entry.dist else "an unnamed package"
    return f"`{package}` ({entry.value})"
