"""What `slimvit strategies` prints, and `docs/strategies.md`: all strategies, or everything about one. Loads no torch.

python -m orchestrator.strategy_help docs/strategies.md
"""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.describe_options import as_yaml, options
from orchestrator.strategy_combinations import REFERENCE, combinations, seams
from strategies import registry
from strategies.api import Strategy

KINDS = {
    "component": "Component design: the network's parts are cheaper",
    "dynamic": "Dynamic networks: images and tokens cost what they need",
    "distillation": "Knowledge distillation: a teacher, or peers, help to train",
}


def overview() -> str:
    """All strategies by kind, one line each: name, what it does, paper, what it changes, its options."""
    lines = []
    names = registry.names()
    width = max((len(name) for name in names), default=0)
    unavailable = {}
    by_kind: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for name in names:
        try:
            strategy = registry.load(name)
        except registry.StrategyUnavailable as error:
            unavailable[name] = error.args[0]
            continue
        changes = ", ".join(seams(name)) or "nothing (losses only)"
        by_kind[strategy.kind].append(
            f"  {name:{width}}  {summary(strategy)} {_source(strategy)}".rstrip()
            + f" Changes: {changes}. Options: {', '.join(_options(strategy))}."
        )
    for kind, found in by_kind.items():
        if found:
            lines += [KINDS[kind], *found, ""]
    lines += [f"{name:{width}}  unavailable: {reason}" for name, reason in unavailable.items()]
    lines.append("`slimvit strategies NAME` shows the options of one, and what it combines with.")
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
    parts.append(f"Changes: {', '.join(seams(name)) or 'nothing in the network; it adds losses'}.")
    together = combinations(name)
    parts.append(
        textwrap.fill(f"Combines with (on {REFERENCE}, defaults): {', '.join(together.possible) or 'none'}.", 100)
    )
    if together.refused:
        reasons = [textwrap.indent(textwrap.fill(f"{o}: {why}", 96), "  ") for o, why in together.refused.items()]
        parts.append("Not with:\n\n" + "\n".join(reasons))
    parts.append("In a spec:\n\n" + textwrap.indent(spec_to_copy(name), "    "))
    return "\n\n".join(parts)


def document() -> str:
    """`docs/strategies.md`: the built-in strategies, so that the file does not depend on what else is installed."""
    parts = [INTRODUCTION]
    for kind, title in KINDS.items():
        names = [name for name in registry.builtin_names() if registry.load(name).kind == kind]
        parts.append(f"## {title}\n\n| strategy | what it does | changes | paper |\n|---|---|---|---|")
        parts[-1] += "".join(f"\n{_line(name)}" for name in names) + "\n"
        parts += [_section(name) for name in names]
    return "\n".join(parts)


INTRODUCTION = f"""\
# Strategies

Written by `make docs` from the strategies themselves; do not edit. `slimvit strategies NAME` prints the same for any
installed strategy, with its options; [the reference](spec-reference.md#strategies) has the options as tables.

Strategies of a stage act together: component design first, then dynamic networks, then distillation. Which combine is
not a list that somebody keeps: each states what it changes, needs and hides at which block, and conflicts follow. The
lines "with" and "not with" are the answers for `{REFERENCE}` with every strategy at its defaults; other
blocks or options can make a refused pair possible, and the error that a plan gives says how.
"""


def _line(name: str) -> str:
    strategy = registry.load(name)
    cells = [f"[`{name}`](#{name})", summary(strategy), ", ".join(seams(name)) or "losses only", strategy.paper]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _section(name: str) -> str:
    strategy, builtin = registry.load(name), set(registry.builtin_names())
    together = combinations(name)
    possible = [f"`{o}`" for o in together.possible if o in builtin]
    text = f"### {name}\n\n{inspect.getdoc(strategy)}\n\n{strategy.paper}.\n\nOptions: "
    text += ", ".join(f"[`{o}`](spec-reference.md#{name})" for o in _options(strategy)) + ".\n\n"
    text += f"With: {', '.join(possible) or 'none'}.\n"
    refused = [f"* `{o}`: {why}" for o, why in together.refused.items() if o in builtin]
    if refused:
        text += "\nNot with:\n\n" + "\n".join(refused) + "\n"
    return text + f"\n```yaml\n{spec_to_copy(name)}\n```\n"


def _options(strategy: type[Strategy[Any]]) -> list[str]:
    return [name for name in strategy.Config.model_fields if name != "name"]


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
                "changes": seams(each),
                "combines_with": combinations(each).possible,
                "options": strategy.Config.model_json_schema(),
            }
        )
    return json.dumps(found, indent=2)


def spec_to_copy(name: str) -> str:
    """A `strategies` list with the strategy and those that it cannot do without, as YAML."""
    strategy = registry.load(name)
    entries = {name: longest_example(strategy), **strategy.beside}
    return "\n".join(["strategies:", *(f"  - {as_yaml({'name': n, **o})}" for n, o in entries.items())])


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


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(document(), encoding="utf-8")
