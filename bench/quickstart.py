"""What the quickstart reached and how long it took: bench/results/quickstart.json, from a run of `vae-edge quickstart`.

    python bench/quickstart.py [--out runs/quickstart]

Runs the quickstart unless its result is there already.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from vae_edge.files import write_json
from vae_edge.pipeline import quickstart

RESULTS = Path(__file__).parent / "results" / "quickstart.json"


def main() -> int:
    """Run the quickstart and write what it reached; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/quickstart", type=Path)
    out = parser.parse_args().out
    quickstart(out=out)
    result, benchmark = (
        json.loads((out / name).read_text(encoding="utf-8")) for name in ("quickstart.json", "bench.json")
    )
    rows = [{k: v for k, v in row.items() if not k.startswith("mean")} for row in benchmark["results"]]
    kept = {key: value for key, value in result.items() if key not in ("report", "bundle", "run", "asked")}
    write_json(RESULTS, {"schema": 1, "machine": benchmark["machine"], **kept, "latency": rows})
    print(RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
