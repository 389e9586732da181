"""`vae-edge kernels`: what the compiler made of kernels, what they compute, and what they cost; without a GPU."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vae_edge.cli.console import emit, say, working
from vae_edge.environment import available_cpus
from vae_edge.errors import ConfigError

if TYPE_CHECKING:
    from vae_edge_kernels.emulator.machine import Device
    from vae_edge_kernels.emulator.timing import MachineModel

    from vae_edge.emulation.checks import Outcome
    from vae_edge.emulation.launch import Compiled

LARGE_BATCH = 256  # images, for a network's throughput
COUNTED = (
    ("instructions", "warp instructions"),
    ("products", "products of matrices"),
    ("shuffles", "shuffles"),
    ("barriers", "barriers"),
    ("sectors read", "sectors read"),
    ("sectors written", "sectors written"),
    ("wavefronts", "wavefronts of shared memory"),
    ("conflicts", "of them by conflicts of banks"),
)
BY_LINE = (
    ("instructions", ("instructions",)),
    ("products", ("products",)),
    ("shuffles", ("shuffles",)),
    ("barriers", ("barriers",)),
    ("sectors", ("sectors read", "sectors written")),
    ("wavefronts", ("wavefronts",)),
    ("conflicts", ("conflicts",)),
)
HEADINGS = ("kernel", "sm", "registers", "shared", "spills", "occupancy", "matrix", "loop", "16-byte", "code", "")


def check(arguments: argparse.Namespace) -> int:
    """`vae-edge kernels check`: 0 when every kernel is within its budget, else 2. A user's kernels have no budgets."""
    from vae_edge_kernels import aot
    from vae_edge_kernels.analysis import sass

    architectures = aot.parse_architectures(",".join(arguments.arch or ["87", "90"]))
    if arguments.file is not None:
        if arguments.only is not None or arguments.networks is not None:
            raise ConfigError(f"--only and --networks select kernels of VAE Edge, not of {arguments.file}")
        outcomes = [(number, outcome) for number in architectures for outcome in _outcomes(arguments, number)]
        _print_machine_code([outcome for _, outcome in outcomes], arguments.json)
        return _told(outcomes)
    networks = _networks(",".join(arguments.networks or ["small"]))
    reports = sass.collect_reports(architectures, arguments.only or "*", networks, say, available_cpus())
    result = [asdict(report) for report in reports]
    emit(result, arguments.json, lambda: _lines(reports))
    faults = [report for report in reports if report.fault]
    for report in faults:
        say(f"sm_{report.architecture}: {report.fault}")
    if faults:
        say(f"{len(faults)} of {len(reports)} are over their budget")
    return 2 if faults else 0


def run(arguments: argparse.Namespace) -> int:
    """`vae-edge kernels run`: 0 when every check of a file is right on the emulated GPU, else 2."""
    from vae_edge_kernels import aot

    result, status = [], 0
    for architecture in aot.parse_architectures(",".join(arguments.arch or ["87"])):
        for outcome in _outcomes(arguments, architecture, arguments.seed, arguments.rtol, arguments.atol):
            result.append(
                {
                    "check": outcome.name,
                    "architecture": architecture,
                    "right": outcome.fault is None,
                    "ran": outcome.ran,
                    "fault": outcome.fault,
                    "largest_difference": outcome.differences,
                    "launches": len(outcome.launches),
                    "warp_instructions": sum(each.device.counts.totals["instructions"] for each in outcome.launches),
                }
            )
            if not arguments.json:
                emit(result[-1], False, lambda: _run_lines(result[-1:]))
            status = max(status, _told([(architecture, outcome)]))
    if arguments.json:
        emit(result, True)
    return status


def profile(arguments: argparse.Namespace) -> int:
    """`vae-edge kernels profile`: what launches cost, by source line, and the time that a machine model gives them."""
    from vae_edge_kernels.emulator.timing import MODELS

    model = MODELS[arguments.device]
    if sum(given is not None for given in (arguments.file, arguments.networks, arguments.operators)) != 1:
        raise ConfigError("give either a file with checks, or --networks, or --operators")
    if arguments.only is not None and arguments.operators is None:
        raise ConfigError("--only is for --operators")
    if arguments.programs is not None and arguments.networks is None:
        raise ConfigError("--programs is for --networks")
    if arguments.programs is not None and arguments.programs.bit_count() != 1:
        raise ConfigError(f"--programs {arguments.programs}: expected a power of two")
    if arguments.networks == ["none"]:
        raise ConfigError("--networks none: expected presets, such as small or small@96x64")
    if arguments.operators is not None:
        return _profile_operators(arguments, model)
    launches: list[tuple[str, Compiled, Device, Any]] = []  # with the layout of a network
    outcomes: list[tuple[int, Outcome]] = []
    if arguments.file is not None:
        outcomes = [(model.architecture, each) for each in _outcomes(arguments, model.architecture, model=model)]
        for _, outcome in outcomes:
            launches += [
                (f"{outcome.name}: {each.compiled.name}", each.compiled, each.device, None) for each in outcome.launches
            ]
    else:
        from vae_edge.emulation.networks import profile_network

        for name, layout in _layouts(",".join(arguments.networks)).items():
            with working(f"{name} on sm_{model.architecture}"):
                compiled, device = profile_network(layout, model.architecture, model, arguments.programs or 1)
                launches.append((name, compiled, device, layout))
    result = [_profile(*launch) for launch in launches]
    emit(result, arguments.json, lambda: _profile_lines(result, model.name, arguments.lines))
    return _told(outcomes)


def _profile_operators(arguments: argparse.Namespace, model: MachineModel) -> int:
    from vae_edge.emulation.operators import operator_cases, profile_case
    from vae_edge.model.network import layout_for_preset

    result = []
    layouts = {int8: layout_for_preset(arguments.operators, int8=int8) for int8 in (False, True)}
    for case in operator_cases(layouts, arguments.only or "*"):
        with working(f"{case.name}, {case.shape}"):
            made = profile_case(case, model)
        counts = made.device.counts.totals
        result.append(
            {
                "operator": case.name,
                "shape": case.shape,
                "architecture": model.architecture,
                "grid": list(made.device.grid),
                "warps": made.compiled.warps,
                "registers": made.compiled.stats.registers,
                "values": case.values,
                "counts": dict(counts),
                "alone_us": made.alone.us,
                "alone_limit": made.alone.limit,
                "full_us": made.full_us,
                "full_limit": made.full_limit,
                "roofline_us": made.roofline_us,
                "share": made.roofline_us / made.full_us,
            }
        )
    emit(result, arguments.json, lambda: _operator_lines(result, model.name))
    return 0


def _operator_lines(result: Sequence[dict[str, Any]], model: str) -> Iterator[str]:
    headings = ("instructions", "a value", "a product", "barriers", "wavefronts", "conflicts", "alone", "full", "roof")
    rows = [("operator", "shape", *headings, "limit")]
    for each in result:
        counts = each["counts"]
        instructions, products = counts["instructions"], counts.get("products", 0)
        wavefronts = counts.get("wavefronts", 0)
        rows.append(
            (
                each["operator"],
                each["shape"],
                f"{instructions:,}",
                f"{32 * instructions / each['values']:.1f}",
                f"{instructions / products:.1f}" if products else "–",
                f"{counts.get('barriers', 0):,}",
                f"{wavefronts:,}",
                f"{counts.get('conflicts', 0) / max(1, wavefronts):.1%}",
                f"{each['alone_us']:.2f}",
                f"{each['full_us']:.3f}",
                f"{each['share']:.0%}",
                each["full_limit"],
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) if i in (0, 1, len(row) - 1) else cell.rjust(width)
                 for i, (cell, width) in enumerate(zip(row, widths, strict=True)))  # fmt: skip
        yield "  ".join(cells).rstrip()
    yield ""
    yield "instructions: of warps; a value: of threads for each value written; a product: for each product of matrices"
    yield (
        f"modelled on {model}, not measured, in us: alone, one launch at batch 1; full, its share of a launch that "
        "fills the GPU, what limits it, and the roofline's part of it"
    )


def _outcomes(
    arguments: argparse.Namespace,
    architecture: int,
    seed: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    model: Any = None,
) -> Iterator[Outcome]:
    """Of each check of the file, in order."""
    from vae_edge.emulation.checks import load_checks, run_check

    for name, function in load_checks(arguments.file).items():
        with working(f"{name} on sm_{architecture}"):
            outcome = run_check(
                name,
                function,
                architecture,
                seed=seed,
                model=model,
                rtol=rtol,
                atol=atol,
                timeout=arguments.timeout,
            )
        yield outcome


def _told(outcomes: Sequence[tuple[int, Outcome]]) -> int:
    """Say what is wrong, after the results: 2 if anything is."""
    faults = [each for each in outcomes if each[1].fault is not None]
    if faults:
        sys.stdout.flush()
    for architecture, outcome in faults:
        say(f"{outcome.name} on sm_{architecture}: {outcome.fault}")
    return 2 if faults else 0


def _run_lines(result: Sequence[dict[str, Any]]) -> Iterator[str]:
    for each in result:
        apart = ", ".join(f"{name} {value:.3g}".strip() for name, value in each["largest_difference"].items())
        yield (
            f"{each['check']} on sm_{each['architecture']}: {_verdict(each)}"
            + (f", largest difference {apart}" if apart else "")
            + f"; {each['launches']} launch{'es' * (each['launches'] != 1)}, "
            f"{each['warp_instructions']:,} warp instructions"
        )


def _verdict(result: dict[str, Any]) -> str:
    if not result["ran"]:
        return "NOT RUN"
    return "right" if result["right"] else "WRONG"


def _print_machine_code(outcomes: Sequence[Outcome], as_json: bool) -> None:
    from vae_edge_kernels.analysis.sass import KernelReport

    compiled = {id(each.compiled): each.compiled for outcome in outcomes for each in outcome.launches}
    reports = [
        KernelReport(each.name, "", each.architecture, each.warps, each.stats, None) for each in compiled.values()
    ]
    emit([asdict(report) for report in reports], as_json, lambda: _lines(reports))


def _profile(name: str, compiled: Compiled, device: Device, layout: Any) -> dict[str, Any]:
    """A launch's counts and modelled time; of a network with one program an image its throughput too."""
    from vae_edge_kernels.analysis.roofline import DEVICES, LIMITS, fused_cost
    from vae_edge_kernels.emulator.timing import estimate, estimate_full

    occupied = compiled.stats.occupancy
    resident = max(1, round(occupied * LIMITS[compiled.architecture].warps / compiled.warps))
    modelled = estimate(device, resident)
    throughput = None
    if layout is not None and device.grid[1] == 1:
        full = estimate_full(device, resident)
        paper = next(each for each in DEVICES if each.architecture == compiled.architecture)
        bound = fused_cost(layout).lower_bound_us(paper, LARGE_BATCH, layout.int8) / LARGE_BATCH
        throughput = {"us_per_image": full.us, "limit": full.limit, "roofline_us": bound, "share": bound / full.us}
    return {
        "launch": name,
        "architecture": compiled.architecture,
        "grid": list(device.grid),
        "warps": compiled.warps,
        "registers": compiled.stats.registers,
        "programs_a_multiprocessor": resident,
        "counts": dict(device.counts.totals),
        "opcodes": dict(device.counts.opcodes.most_common()),
        "lines": {line: dict(counts) for line, counts in device.counts.by_line.items()},
        "modelled_us": modelled.bounds,
        "limit": modelled.limit,
        "throughput": throughput,
    }


def _profile_lines(result: Sequence[dict[str, Any]], model: str, lines: int) -> Iterator[str]:
    for each in result:
        counts = each["counts"]
        yield (
            f"{each['launch']}: sm_{each['architecture']}, grid {' x '.join(map(str, each['grid']))}, "
            f"{each['warps']} warps, {each['registers']} registers, "
            f"{each['programs_a_multiprocessor']} programs a multiprocessor"
        )
        yield "  " + ", ".join(f"{counts.get(name, 0):,} {text}" for name, text in COUNTED)
        bounds = sorted(each["modelled_us"].items(), key=lambda pair: -pair[1])
        yield (
            f"  modelled on {model}, not measured: {bounds[0][1]:.1f} us, limited by {bounds[0][0]}; "
            + ", ".join(f"{name} {value:.1f}" for name, value in bounds[1:])
        )
        if each["throughput"] is not None:
            full = each["throughput"]
            yield (
                f"  modelled at batch {LARGE_BATCH}, not measured: {full['us_per_image']:.2f} us an image, limited by "
                f"{full['limit']}; {full['share']:.0%} of the roofline ({full['roofline_us']:.2f} us)"
            )
        rows = [("line", *(name for name, _ in BY_LINE))]
        most = sorted(each["lines"].items(), key=lambda pair: -pair[1].get("instructions", 0))
        for line, numbers in most[:lines]:
            rows.append((line, *(f"{sum(numbers.get(part, 0) for part in parts):,}" for _, parts in BY_LINE)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for first, *others in rows if lines else ():
            cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
            yield "  " + "  ".join((first.ljust(widths[0]), *cells))
        if len(most) > lines > 0:
            yield f"  and {len(most) - lines} more lines (--lines)"
        yield ""


def roofline(arguments: argparse.Namespace) -> int:
    """`vae-edge kernels roofline`: the lower bound of each launch's time, on paper."""
    from vae_edge_kernels.analysis import roofline as paper

    layouts = _layouts(",".join(arguments.networks or ["tiny", "small", "base"]))
    emit(
        {name: [asdict(step) for step in paper.layer_costs(layout)] for name, layout in layouts.items()},
        arguments.json,
        lambda: _tables(layouts),
    )
    return 0


def _tables(layouts: dict[str, Any]) -> Iterator[str]:
    from vae_edge_kernels.analysis import roofline as paper

    for name, layout in layouts.items():
        yield f"{name}: microseconds at batch {' and '.join(map(str, paper.BATCHES))}"
        yield ""
        yield from paper.table(layout).splitlines()
        yield ""
    yield from paper.savings(layouts).splitlines()


def _layouts(names: str) -> dict[str, Any]:
    """Layouts of presets, in fp16 and int8, by name."""
    if names == "none":
        return {}
    from vae_edge.model.network import layout_for_preset

    return {
        f"{name}_{'int8' if int8 else 'fp16'}": layout_for_preset(name, int8=int8)
        for name in map(str.strip, names.split(","))
        for int8 in (False, True)
    }


def _networks(names: str) -> dict[str, str]:
    """The same layouts as JSON."""
    from vae_edge_kernels.layout import to_json

    return {name: to_json(layout) for name, layout in _layouts(names).items()}


def _lines(reports: Sequence[Any]) -> Iterator[str]:
    rows = [HEADINGS, *map(_row, reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    for row in rows:
        first, *others = (cell.ljust(width) if i in (0, 6, 10) else cell.rjust(width)
                          for i, (cell, width) in enumerate(zip(row, widths, strict=True)))  # fmt: skip
        yield "  ".join((first, *others)).rstrip()


def _row(report: Any) -> tuple[str, ...]:
    code = report.code
    wide = f"{code.load_bits.get(128, 0)} + {code.store_bits.get(128, 0)}"
    return (
        report.kernel,
        str(report.architecture),
        str(code.registers),
        f"{code.shared_bytes:,}",
        str(code.spill_store_bytes),
        f"{code.occupancy:.0%}",
        " ".join(f"{count} {name}" for name, count in code.matrix.items()) or "–",
        f"{code.loop_matrix} of {code.loop}" if code.loop else "–",
        wide,
        f"{code.code_bytes:,}",
        "" if report.fault is None else "over",
    )
