"""What `slimvit strategies` prints: all registered strategies, or everything about one. Loads no torch."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Mapping
from typing import Any

from orchestrator.describe_options import as_yaml, options
from strategies import registry
from strategies.api import Strategy


def overview() -> str:
    """All strategies, one line each: name, kind, what it does and its paper."""
    lines = []
    width = max((len(name) for name in registry.names()), default=0)
    for name in registry.names():
        try:
            strategy = registry.load(name)
        except registry.StrategyUnavailable as error:
            lines.append(f"{name:{width}}  unavailable   {error.args[0]}")
            continue
        lines.append(f"{name:{width}}  {strategy.kind:12}  {summary(strategy)} {_source(strategy)}".rstrip())
    lines.append("\n`slimvit strategies NAME` shows the options of one.")
    return "\n".join(lines)


def details(name: str) -> str:
    """One strategy: what it does, its options, and how to write it in a spec.

    Raises:
        StrategyUnavailable: if it is not registered or cannot be loaded.
    """
    strategy = registry.load(name)
    parts = [f"{name} ({strategy.kind})", inspect.getdoc(strategy) or "", f"Paper: {strategy.paper}", "Options:"]
    for option in options(strategy.Config):
        if option.name == "name":
            continue
        meaning = textwrap.indent(textwrap.fill(option.meaning, 100), "      ")
        parts.append(f"  {option.name}: {option.type}; default {option.default}\n{meaning}")
    entry = as_yaml({"name": name, **longest_example(strategy)})
    parts.append(f"In a spec:\n\n    strategies:\n      - {entry}")
    return "\n\n".join(parts)


def as_json(name: str | None = None) -> str:
    """All strategies, or one, with the schema of their options, for machines; raises as `details` does."""
    found = []
    for each in registry.names() if name is None else [name]:
        strategy = registry.load(each)
        found.append(
            {
                "name": each,
                "kind": strategy.kind,
                "paper": strategy.paper,
                "summary": summary(strategy),
                "options": strategy.Config.model_json_schema(),
            }
        )
    return json.dumps(found, indent=2)


def longest_example(strategy: type[Strategy[Any]]) -> Mapping[str, Any]:
    """The example with the most options."""
    return max(strategy.examples, key=lambda example: len(example), default={})


def summary(strategy: type) -> str:
    """First line of a strategy's docstring."""
    return (inspect.getdoc(strategy) or "").partition("\n")[0]


def _source(strategy: type[object]) -> str:
    """The paper, unless the summary names it."""
    paper = str(getattr(strategy, "paper", ""))
    number = paper.rpartition("arXiv:")[2].rstrip(").")
    return "" if number and number in summary(strategy) else f"[{paper}]"
