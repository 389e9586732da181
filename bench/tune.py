"""Find each kernel's fastest launch configuration on the GPU that is here, and write it into the tables.

    python bench/tune.py [--only 'conv_fp16*'] [--seconds 900] [--dry-run]

A table's entry serves several layers: each candidate is checked and timed on all of the benchmark's cases that use the
entry, and the one with the smallest geometric mean wins, if it is right everywhere, within the kernel's budget and
faster than what is there by 2%. The ahead-of-time compiler reads the same tables. Exit codes: 0 done; 2 no GPU.
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from benchmark_case import PRESETS, Case, Run
from kernel_cases import cases
from triton.errors import TritonError
from vae_edge_kernels import config
from vae_edge_kernels.analysis import sass
from vae_edge_kernels.aot import worker
from vae_edge_kernels.config import KernelSpec
from vae_edge_kernels.layout import to_json

from kernels import median_us
from vae_edge.model.network import layout_for_preset

GAIN = 0.98
CHOICES = {
    "BLOCK_M": (16, 32, 64, 128),
    "BLOCK_K": (32, 64, 128),
    "BLOCK_SIZE": (256, 512, 1024, 2048),
    "ROWS": (16, 32, 64, 128),
    "BLOCK_FC": (32, 64, 128),
    "num_warps": (2, 4, 8),
    "num_stages": (1, 2, 3, 4),
}
NETWORK_CHOICES = {"WARP_TILES": (2, 4, 7, 8, 14), "AHEAD_REGISTERS": (0, 32, 96), "num_warps": (4, 8)}

Key = tuple[str, str]


def candidates(operator: str, now: dict[str, int]) -> Iterator[dict[str, int]]:
    """Configurations to try: what is there first, then every combination of what may be changed in it, mixed, so that
    some of everything is tried where time is short."""
    yield now
    choices = NETWORK_CHOICES if operator == "network" else CHOICES
    names = [name for name in choices if name in now]
    combinations = list(itertools.product(*(choices[name] for name in names)))
    random.Random(0).shuffle(combinations)
    for values in combinations:
        made = {**now, **dict(zip(names, values, strict=True))}
        if made != now:
            yield made


def entries_of(run: Run) -> set[Key]:
    """The tables' entries that a case's kernel asks for."""
    with config.record_config_keys() as keys:
        run.ours()
    return keys


def mean_us(runs: Sequence[Run], key: Key, candidate: dict[str, int], clock: Callable[..., float]) -> float:
    """Geometric mean of the runs' times with a candidate; infinity where one is wrong or does not fit the GPU."""
    logs = []
    try:
        with config.override_config(*key, candidate):
            for run in runs:
                if not run.check() <= run.tolerance:
                    return math.inf
                logs.append(math.log(clock(run.ours)))
    except (TritonError, RuntimeError):  # it does not compile, or does not fit; what broke the GPU shows here:
        torch.cuda.synchronize()
        return math.inf
    return math.exp(sum(logs) / len(logs))


def within_budget(key: Key, candidate: dict[str, int], architecture: int, specs: Sequence[KernelSpec]) -> bool:
    """Whether the kernels that the ahead-of-time compiler makes of an entry stay within their budgets."""
    with config.override_config(*key, candidate):
        made = {spec.name: spec for spec in compiled_of(key, architecture)}
    changed = [made[was.name] for was in specs if made[was.name] != was]
    return bool(changed) and all(sass.inspect_spec(spec, architecture).fault is None for spec in changed)


def compiled_of(key: Key, architecture: int) -> list[KernelSpec]:
    """The kernels that the ahead-of-time compiler makes which an entry may change."""
    if key[0] not in ("network", "heads"):
        return list(worker.kernel_specs(architecture))
    return [
        spec
        for name in PRESETS
        for int8 in (False, True)
        for spec in worker.kernel_specs(
            architecture, to_json(layout_for_preset(name, int8=int8)), f"_{name}_{'int8' if int8 else 'fp16'}"
        )
    ]


def fastest(
    key: Key, runs: Sequence[Run], architecture: int, until: float, clock: Callable[..., float] = median_us
) -> tuple[dict[str, int], float, float]:
    """The best configuration of an entry, its mean time, and the mean time of what is there."""
    now = config.get_config(*key, architecture)
    usual = compiled_of(key, architecture)
    times: list[tuple[float, dict[str, int]]] = []
    for candidate in candidates(key[0], now):
        if times and time.monotonic() > until:
            break
        times.append((mean_us(runs, key, candidate, clock), candidate))
    before = times[0][0]
    for spent, candidate in sorted(times, key=lambda timed: timed[0]):
        if spent > GAIN * before:
            break
        if within_budget(key, candidate, architecture, usual):
            return candidate, spent, before
    return now, before, before


def grouped(chosen: Sequence[Case]) -> dict[Key, list[Case]]:
    """The cases by the entry that they use; those that use several are the last one's."""
    groups: dict[Key, list[Case]] = {}
    for case in chosen:
        for key in sorted(entries_of(case.make()))[-1:]:
            groups.setdefault(key, []).append(case)
        torch.cuda.empty_cache()
    return groups


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune and write; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="kernels of the benchmark whose names fit this pattern")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop trying after so many")
    parser.add_argument("--dry-run", action="store_true", help="say what would be written, and write nothing")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("No CUDA GPU is available to PyTorch on this machine; run this where one is.", file=sys.stderr)
        return 2
    architecture = config.current_architecture()
    assert architecture is not None
    until = time.monotonic() + options.seconds
    groups = grouped([case for case in cases() if fnmatch.fnmatchcase(case.kernel, options.only)])
    share = options.seconds / max(1, len(groups))
    for key, members in groups.items():
        runs: list[Any] = [case.make() for case in members]
        best, after, before = fastest(key, runs, architecture, min(until, time.monotonic() + share))
        print(f"{key[0]} {key[1]}: {before:.2f} to {after:.2f} us, {best}", flush=True)
        if after < before and not options.dry_run:
            config.write_config(*key, architecture, best, torch.cuda.get_device_name())
    return 0


if __name__ == "__main__":
    sys.exit(main())
