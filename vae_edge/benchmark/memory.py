"""Peak memory of a process that loads a bundle and predicts; run it with `python -m vae_edge.benchmark.memory`.

What is measured: the peak resident set of one fresh process, from its start to the end of its last prediction, in
bytes (`VmHWM` of /proc/self/status, or `ru_maxrss` where that is missing). It contains the interpreter, NumPy, the
engine's libraries, the model, and pages of shared libraries that other processes use too. Nothing is subtracted; the
process without a bundle, which imports NumPy and this package alone, is the baseline to hold it against.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

import vae_edge
from vae_edge.errors import BackendError

TIMEOUT_S = 120


def peak_memory(bundle: str | os.PathLike[str], backend: str, precision: str, batch: int, threads: int) -> int:
    """Peak resident bytes of a fresh process that loads the bundle and predicts batches of this size.

    Raises:
        BackendError: if that process fails.
    """
    return _measure(
        [str(bundle), "--backend", backend, "--precision", precision, f"--batch={batch}", f"--threads={threads}"]
    )


def baseline_memory() -> int:
    """Peak resident bytes of a fresh process that imports NumPy and this package and loads no bundle."""
    return _measure([])


def _measure(arguments: list[str]) -> int:
    command = [sys.executable, "-m", "vae_edge.benchmark.memory", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"Measuring memory took longer than {TIMEOUT_S} s and was given up: {command}.") from error
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BackendError(f"The process that measures memory ended with {done.returncode} ({said}): {command}.")
    return int(json.loads(done.stdout.strip().splitlines()[-1])["peak_bytes"])


def peak_of_this_process() -> int:
    """Peak resident bytes of the process so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Load, predict, print {"peak_bytes": n}; without a bundle, print at once."""
    parser = argparse.ArgumentParser(description="Print the peak memory of loading a bundle and predicting.")
    parser.add_argument("bundle", nargs="?")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.bundle is not None:
        with vae_edge.load(given.bundle, given.backend, given.precision, given.threads, verify="off") as classifier:
            spec = classifier.input
            shape = (given.batch, spec.size, spec.size, spec.channels)
            images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
            classifier.warmup(given.batch)
            for _ in range(3):
                classifier(images)
    print(json.dumps({"peak_bytes": peak_of_this_process()}))


if __name__ == "__main__":
    main()
