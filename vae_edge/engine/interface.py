"""Whether a parsed ONNX file is one of ours: its input, its outputs, and the precision that its graph asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vae_edge.errors import EngineError

# name: (type, rank); -1 in a shape is a size that is free
_OUTPUTS = {
    "classifier": {"probabilities": ("FLOAT", 2), "angle": ("FLOAT", 1), "score": ("FLOAT", 1)},
    "reconstruction": {"reconstruction": ("UINT8", 4)},
}
# beside them, in a classifier that was trained turned: all of these or none
_DOUBTS = {"concentration": ("FLOAT", 1), "second_angle": ("FLOAT", 1), "second_share": ("FLOAT", 1)}
_EXPORT = "Give a file that `vae-edge export` or `vae-edge quantize` wrote."


def check_interface(network: Any, role: str, path: Path) -> None:
    """Check the input `image` uint8 [N, H, W, C] and the role's outputs of a parsed network.

    Raises:
        EngineError: that says what was expected and what the file has.
    """
    inputs = _describe(network.get_input(i) for i in range(network.num_inputs))
    outputs = _describe(network.get_output(i) for i in range(network.num_outputs))
    if not outputs:
        raise EngineError(f"{path} holds no graph: it is no ONNX model, or it is empty or cut short. {_EXPORT}")
    kind, shape = inputs.get("image", ("", ()))
    fits = kind == "UINT8" and len(shape) == 4 and shape[3] in (1, 3) and shape[1] > 0 and shape[2] > 0
    if len(inputs) != 1 or not fits:
        raise EngineError(
            f"{path} is not a model of ours: its one input should be image, uint8 [N, H, W, 1 or 3], but it has "
            f"{_text(inputs)}. {_EXPORT}"
        )
    if shape[0] != -1:
        raise EngineError(
            f"{path} has the fixed batch {shape[0]}, but a free one was expected: {_EXPORT[0].lower()}{_EXPORT[1:]}"
        )
    expected = _OUTPUTS[role]
    if role == "classifier" and set(_DOUBTS) & set(outputs):
        expected = {**expected, **_DOUBTS}
    wrong = [
        name for name, (kind, rank) in expected.items() if name not in outputs or not _is(outputs[name], kind, rank)
    ]
    if wrong or set(outputs) != set(expected):
        should = ", ".join(f"{name} ({kind.lower()}, rank {rank})" for name, (kind, rank) in expected.items())
        raise EngineError(
            f"{path} is no {role} of ours: its outputs should be {should}, but it has {_text(outputs)}. {_EXPORT}"
        )


def check_asked_precision(asked: Mapping[str, str], precision: str, path: Path) -> None:
    """Check that the graph asks for `precision` at all: in one convolution or matrix product at least, in all for fp32.

    Raises:
        EngineError: that says which precisions the file has.
    """
    if not asked:
        raise EngineError(f"{path} has no convolution and no matrix product: it is not a model of ours. {_EXPORT}")
    kinds = Counter(asked.values())
    fits = set(kinds) == {"fp32"} if precision == "fp32" else precision in kinds
    if not fits:
        has = ", ".join(f"{count} in {kind}" for kind, count in kinds.most_common())
        way = (
            "`vae-edge export` writes fp32"
            if precision == "fp32"
            else f"`vae-edge quantize BUNDLE --precision {precision}` writes it"
        )
        raise EngineError(
            f"{path} is no {precision} file: of its {len(asked)} convolutions and matrix products there are {has}. The "
            f"precision stands in the graph, so it cannot be chosen here; {way}."
        )


def _describe(tensors: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {tensor.name: (tensor.dtype.name, tuple(tensor.shape)) for tensor in tensors}


def _is(tensor: tuple[str, tuple[int, ...]], kind: str, rank: int) -> bool:
    return tensor[0] == kind and len(tensor[1]) == rank


def _text(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> str:
    parts = [
        f"{name}, {kind.lower()} {['N' if n == -1 else n for n in shape]}" for name, (kind, shape) in tensors.items()
    ]
    return "; ".join(parts).replace("'", "") or "none"
