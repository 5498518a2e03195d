"""The comparison as one HTML file that needs nothing else: no network, no server, no second file.

The page, its style and its scripts lie in ``page/``. Every number, the Pareto fronts included, is computed before
(tables in ``sections.py``, what the figures draw in ``report_data.py``); the scripts only draw. All text that comes
from a spec, a strategy, a published table or an error is escaped.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from cluster.storage import ArtifactStore
from orchestrator.planning.plan import Plan
from orchestrator.reporting import report_data, sections
from orchestrator.reporting.comparison import Comparison
from orchestrator.reporting.record import resolved_spec
from orchestrator.reporting.table import to_json
from specs.experiment import Experiment

_PAGE = Path(__file__).parent / "page"

_SCRIPTS = (
    *("base.js", "marks.js", "scatter.js", "operating.js", "effects.js", "evaluation.js"),
    *("training.js", "costs.js", "table.js", "page.js"),
)
"""In this order; together they are one script."""


def html(comparison: Comparison, plan: Plan, experiment: Experiment, store: ArtifactStore) -> str:
    """The report as text; the same input gives the same bytes.

    Raises:
        StoreError: if the history or the evaluation of a stage is damaged.
    """
    from plotly.offline import get_plotlyjs

    axes = " against ".join(a for a in (comparison.quality, comparison.cost) if a) or "nothing yet"
    data = report_data.data(comparison, plan, store)
    page = Template(_part("page.html"))
    return page.substitute(
        experiment=escape(comparison.experiment),
        description=escape(experiment.description),
        facts=sections.facts(comparison, experiment),
        notes=sections.notes(comparison),
        axes=escape(axes),
        hypervolume=sections.hypervolume(comparison),
        table=sections.table(comparison),
        missing=sections.missing(comparison),
        claims=sections.claims(comparison),
        effects=sections.effects(comparison),
        sharing=sections.sharing(comparison),
        stages=sections.stages(comparison),
        conditions=sections.conditions(comparison),
        published=sections.published(comparison),
        spec=escape(resolved_spec(experiment)),
        without_effects=_hidden(comparison.effects),
        without_claims=_hidden(comparison.claims),
        without_curves=_hidden(comparison.curves),
        without_evaluation=_hidden(data["evaluations"]),
        without_published=_hidden(comparison.published),
        data=_embedded(data),
        style=_part("style.css"),
        script="\n".join(_part(name) for name in _SCRIPTS),
        plotly=get_plotlyjs(),
        origin=origin(comparison, experiment),
    )


def origin(comparison: Comparison, experiment: Experiment) -> str:
    """Digest of what the report is made from, which is its last line: comparison, spec, and the program that writes it.

    What the stages left in the store is not read for it: the comparison names them, and an artefact never changes.
    """
    content = hashlib.sha256(to_json(comparison).encode())
    content.update(experiment.model_dump_json().encode())
    content.update(importlib.metadata.version("plotly").encode())
    for source in sorted([*_PAGE.iterdir(), *_PAGE.parent.glob("*.py")]):
        content.update(source.read_bytes())
    return content.hexdigest()


def is_current(path: Path, comparison: Comparison, experiment: Experiment) -> bool:
    """Whether the file is a whole report that was made from the same."""
    try:
        return path.read_bytes().rstrip().endswith(f"<!-- {origin(comparison, experiment)} -->".encode())
    except OSError:
        return False


def _part(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8")


def _hidden(content: Any) -> str:
    """The attribute that hides a part of the page for which there is nothing."""
    return "" if content else "hidden"


def _embedded(data: Any) -> str:
    """JSON that no browser can mistake for the end of its script element."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
