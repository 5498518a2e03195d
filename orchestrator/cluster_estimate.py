"""`slimvit plan --cluster`: device-hours and cost of what is to run, as text."""

from __future__ import annotations

from cluster.state import recall
from orchestrator.planning.estimate import Estimate, Range, estimate
from orchestrator.planning.experience import measured, missing_work
from orchestrator.planning.plan import Plan
from orchestrator.planning.status import finished, to_run
from orchestrator.storage import open_store
from specs.cluster import AwsCluster, ClusterSpec, cluster_name
from specs.experiment import Experiment


def as_text(plan: Plan, experiment: Experiment) -> str:
    """What is known of the time and the money, and what is not."""
    store = open_store(experiment.storage)
    missing = to_run(plan, finished(plan, store))
    found = estimate(missing_work(plan, missing), measured(store, on_gpu=experiment.resources.gpus_per_worker > 0))
    return "\n".join(_lines(found, experiment))


def price_of(cluster: ClusterSpec | None, experiment: str) -> tuple[float, str] | None:
    """Price of a worker in US dollars an hour, and where it is from; `None` if nobody said."""
    if cluster is None:
        return None
    if cluster.price_per_hour is not None:
        return cluster.price_per_hour, "`cluster.price_per_hour`"
    if not isinstance(cluster, AwsCluster):
        return None
    known = recall("aws-prices", cluster_name(cluster, experiment))
    if known is None or (known.get("region"), known.get("instance")) != (cluster.region, cluster.worker_instance):
        return None
    return float(known["worker"]), f"AWS on {known['date']}"


def _lines(found: Estimate, experiment: Experiment) -> list[str]:
    if not found.stages:
        return ["Nothing is to be trained."]
    hours = found.hours
    if hours is None:
        return [
            f"How long the {len(found.stages)} stages will take is not known: the store has no finished stage of their "
            "kind on such devices. Run one of them first (fewer `epochs` will do), and ask again."
        ]
    lines = [
        f"Estimated {_shown(hours, 'device-hours')} for {len(found.stages) - len(found.unknown)} stages, from "
        f"{found.runs} finished ones: {found.count('same')} as earlier runs of the same network and strategies took, "
        f"{found.count('scaled')} scaled by MACs from the nearest (strategies' own savings are not in that)."
    ]
    if hours.low is None:
        lines.append("How far it may be off is not known: too few runs of one kind are finished.")
    if found.unknown:
        lines.append(f"Not in it, because nothing is known of them: {', '.join(found.unknown)}.")
    price = price_of(experiment.cluster, experiment.name)
    if price is None:
        lines.append("Its cost is not known: set `cluster.price_per_hour` (of one worker), or let AWS be asked.")
    else:
        lines.append(
            f"Workers at {price[0]:.4g} US dollars an hour ({price[1]}): {_shown(hours * price[0], 'US dollars')}. The "
            "head node, idle workers, disks and traffic come on top."
        )
    return lines


def _shown(number: Range, unit: str) -> str:
    spread = "" if number.low is None or number.high is None else f" ({number.low:.3g} to {number.high:.3g})"
    return f"{number.likely:.3g} {unit}{spread}"
