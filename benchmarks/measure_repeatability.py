"""How well two independent measurements agree on a noisy machine: the ratio to the baseline, and the speed itself.

The same network is measured again and again, each time in a fresh process as `slimvit measure` does it: networks are
built, warmed up, and timed beside the baseline in alternation. Two successive measurements are a pair. A pair agrees
if the larger value is at most 5 % above the smaller one.

    python benchmarks/measure_repeatability.py --pairs 10 [--noise]

`--noise` starts a neighbour that uses one processor for a second, rests for one, and so on. Prints JSON: for ratio and
absolute value of throughput and latency, the pairs that agree, the spread of all measurements, and how many of the
intervals hold the median of all measurements.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

AGREE = 0.05
METRICS = ("throughput", "throughput_ratio", "latency_ms", "latency_ratio")
ARGS = ("img_size=32", "patch_size=8")
NOISE = """
import time
while True:
    end = time.time() + 1
    while time.time() < end:
        pass
    time.sleep(1)
"""


def measure(model: str, options: argparse.Namespace) -> dict[str, dict]:
    """Rows of one measurement in a fresh process, by metric."""
    command = [sys.executable, "-m", "orchestrator.cli", "measure", "--model", model, "--json"]
    command += [word for arg in ARGS for word in ("--model-arg", arg)]
    command += ["--batch-size", str(options.batch_size), "--threads", str(options.threads), "--device", options.device]
    command += ["--seconds", str(options.seconds), "--only", ",".join(METRICS)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {row["name"]: row for row in json.loads(done.stdout)}


@contextmanager
def neighbour(wanted: bool) -> Iterator[None]:
    """Another process that works and rests by turns."""
    process = subprocess.Popen([sys.executable, "-c", NOISE]) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def judged(rows: list[dict]) -> dict[str, object]:
    """How well the measurements of one metric agree."""
    values = [row["value"] for row in rows]
    pairs = list(zip(values[::2], values[1::2], strict=True))
    differences = [max(pair) / min(pair) - 1 for pair in pairs]
    middle = statistics.median(values)
    result: dict[str, object] = {
        "values": values,
        "pairs_that_agree": sum(difference <= AGREE for difference in differences),
        "largest_difference_percent": 100 * max(differences),
        "spread_percent": 100 * (max(values) / min(values) - 1),
        "std_percent": 100 * statistics.stdev(values) / middle,
        "marked_unreliable": sum(row["unreliable"] is not None for row in rows),
    }
    intervals = [row["interval"] for row in rows if row["interval"] is not None]
    if intervals:
        result["intervals_that_hold_the_median"] = sum(low <= middle <= high for low, high in intervals)
        result["median_width_of_intervals_percent"] = 100 * statistics.median(
            (high - low) / middle for low, high in intervals
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each timed quantity")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--noise", action="store_true", help="beside a neighbour that works and rests by turns")
    options = parser.parse_args()

    started = time.monotonic()
    with neighbour(options.noise):
        measurements = [measure(options.model, options) for _ in range(2 * options.pairs)]
    found = {name: judged([rows[name] for rows in measurements]) for name in METRICS}
    seen = [rows["throughput"]["summary"] for rows in measurements]
    print(
        json.dumps(
            {
                "benchmark": "measure_repeatability",
                "pairs": options.pairs,
                "ratio_pairs_that_agree": {
                    name: found[name]["pairs_that_agree"] for name in METRICS if name.endswith("_ratio")
                },
                "wanted": 0.9 * options.pairs,
                **found,
                "foreign_cpu_percent": [summary.get("foreign_cpu_percent") for summary in seen],
                "seconds_a_measurement": (time.monotonic() - started) / len(measurements),
                "conditions": vars(options) | {"python": platform.python_version()} | measured_under(measurements[0]),
            },
            indent=1,
        )
    )


def measured_under(rows: dict[str, dict]) -> dict[str, object]:
    """Conditions that the rows themselves carry."""
    return {key: rows["latency_ratio"]["conditions"][key] for key in ("device", "torch", "timm", "malloc", "baseline")}


if __name__ == "__main__":
    main()
