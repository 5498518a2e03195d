"""A cluster in a process of its own: prints its addresses as JSON, ends when its input closes."""

from __future__ import annotations

import json
import sys

from cluster.connect import connect

if __name__ == "__main__":
    with connect(num_cpus=int(sys.argv[1])) as cluster:
        print(json.dumps({"address": cluster.address, "dashboard": cluster.dashboard_url}), flush=True)
        sys.stdin.read()
