"""What TensorRT says while it parses and builds: collected, and turned into sentences that tell what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")


@dataclass
class Log:
    """The messages of one builder, in order, as (severity, text); each is also handed to `sink` as it comes."""

    messages: list[tuple[str, str]] = field(default_factory=list)
    sink: Callable[[str, str], None] | None = None

    def add(self, severity: str, text: str) -> None:
        """Keep one message."""
        self.messages.append((severity, text))
        if self.sink is not None:
            self.sink(severity, text)

    def errors(self) -> list[str]:
        """The texts of the errors."""
        return [text for severity, text in self.messages if severity.endswith("ERROR")]

    def warnings(self) -> list[str]:
        """The texts of the warnings, each once."""
        return list(dict.fromkeys(text for severity, text in self.messages if severity == "WARNING"))


def make_logger(module: Any, log: Log) -> Any:
    """An `ILogger` of this TensorRT module that writes into `log`. Keep it alive as long as what was made with it."""
    base = module.ILogger

    class Collector(base):  # type: ignore[valid-type, misc]
        def __init__(self) -> None:
            base.__init__(self)  # pybind11 wants this very call

        def log(self, severity: Any, text: str) -> None:
            log.add(severity.name, text)

    return Collector()


# What TensorRT's text contains, and the sentence for it. The first that fits is taken. {0} is a group of the pattern.
_KNOWN: tuple[tuple[str, str], ...] = (
    (
        r"Failed to parse the ONNX model|ParseFromCodedStream",
        "the file is no ONNX model, or it is cut short: export it again, or copy it again from where it came",
    ),
    (
        r"(\w+): first input has type UInt8",
        "the node '{0}' reads the uint8 image as it is: cast it to a float type before anything else is done with it",
    ),
    (
        r"Cannot compile operation '([^']*)' for Turing.*FP32 GEMM",
        "the matrix product '{0}' is fp32, which TensorRT-RTX does not run on sm_75: leave sm_75 out",
    ),
    (
        r"Cannot compile for target\(s\) ([\w, ]*), because the model contains HW-specific datatypes: (\w+)",
        "{0} has no {1} arithmetic: leave it out, or build another precision for it",
    ),
    (
        r"MyelinCheckException.*CHECK\(dtype == myelinTypeFloat",
        'this version fails on int8 files, as TensorRT-RTX 1.5 and 1.6 do: `pip install -U "vae-edge[rtx]"` brings one '
        "that does not",
    ),
    (
        r"Unable to load library: (libnvinfer_lean\S*?):",
        "a version-compatible engine needs TensorRT's lean runtime, and {0} is not installed: install it, or build "
        "without version_compatible",
    ),
    (
        r"(?i)out of memory|OutOfMemory|could not find any implementation.*(?:memory|workspace)|insufficient workspace",
        "the memory did not suffice: close what else uses the GPU, or lower the largest batch or the workspace",
    ),
    (
        r"(?i)CUDA initialization failure with error|CUDA driver version is insufficient|no CUDA-capable device",
        "it found no GPU that it can use: full TensorRT builds only where the NVIDIA driver sees a GPU. Without one, "
        'build ahead of time with TensorRT-RTX: pip install "vae-edge[rtx]"',
    ),
    (
        r"Plugin not found",
        "the ONNX file has an operator that TensorRT does not know and that no plugin brings",
    ),
    (
        r"Network must have at least one output",
        "the ONNX file has no outputs: it is no model, or it is cut short",
    ),
)
_SOURCE = re.compile(r"\s*In \S+ at \S+:\d+\)?|^\S+: Error Code \d+: ")


def explain(errors: Iterable[str]) -> str:
    """One sentence (without a full stop) for what TensorRT reported; its own words where none of ours fits."""
    texts = [text.strip() for text in errors if text.strip()]
    if not texts:
        return "TensorRT gave no reason"
    return (
        recognize(texts)
        or 'TensorRT says: "' + "; ".join(dict.fromkeys(_SOURCE.sub("", text) for text in texts[:3])) + '"'
    )


def recognize(errors: Iterable[str]) -> str:
    """Our sentence (without a full stop) for the first error that has one; empty where none has."""
    for text in errors:
        for pattern, sentence in _KNOWN:
            found = re.search(pattern, text, re.DOTALL)
            if found:
                return sentence.format(*(group or "" for group in found.groups()))
    return ""


def parser_errors(parser: Any) -> list[str]:
    """The errors of an `OnnxParser`, each with the node it is about."""
    texts = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node, operator = _node(error, "node_name"), _node(error, "node_operator")
        where = f"node '{node}' ({operator}): " if operator else ""
        texts.append(where + error.desc())
    return texts


def _node(error: Any, what: str) -> str:
    return str(getattr(error, what)()) if hasattr(error, what) else ""
