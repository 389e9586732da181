"""What an operator tells the ahead-of-time compiler about the kernels that it should make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vae_edge_kernels import configurations
from vae_edge_kernels.launching import WIDTHS, paired, table_key

ONE_WIDTH = (32,)  # for what the network itself does not use
INTEGERS = (
    *("rows", "size", "height", "width", "channels", "out_height", "out_width", "outputs"),
    *("tap_height", "tap_width", "stride", "pad_top", "pad_left", "has_residual", "relu"),
)
FLOATS = ("scale", "quantize", "residual_scale")
FIRST_DEPTH = 32  # of the ahead-of-time first layers: 3×3 taps of 1 or 3 channels


@dataclass(frozen=True)
class Variant:
    """One kernel with its types and constants fixed, ready to be compiled.

    Attributes:
        name: unique in the native library: operator, dtypes, columns of a tile, and what it asks of memory.
        operator: the operator's name, as in `configs/`.
        function: the `@triton.jit` function.
        types: Triton's type of each argument that stays an argument, in any order: "*fp16", "i32", "fp32", ...
        constants: value of each `tl.constexpr` argument.
        aligned: names of pointers and integers that the caller promises to be multiples of 16 (bytes, numbers).
        num_warps: warps of a program.
        num_stages: stages of the software pipeline.
        fp_fusion: whether a product and a sum may become one instruction, which rounds once.
    """

    name: str
    operator: str
    function: Any
    types: dict[str, str]
    constants: dict[str, Any]
    aligned: tuple[str, ...]
    num_warps: int
    num_stages: int
    fp_fusion: bool = True


def convolution_variants(
    operator: str,
    kernel: str,
    function: Any,
    tag: str,
    types: dict[str, str],
    architecture: int,
    fp_fusion: bool = True,
    widths: tuple[int, ...] = WIDTHS,
) -> list[Variant]:
    """A convolution for each width of tile, for any memory and for aligned memory.

    `types` are the pointers' element types; the configuration is the one of x's type, `tag` names the variant.
    """
    table = f"{kernel}_{types['x_ptr']}"
    return [
        _convolution(
            f"{operator}_{tag}",
            operator,
            table_key(table, width, aligned),
            function,
            types,
            architecture,
            aligned,
            fp_fusion,
        )
        for width in widths
        for aligned in (False, True)
    ]


def first_convolution_variants(
    operator: str,
    function: Any,
    tag: str,
    types: dict[str, str],
    architecture: int,
    fp_fusion: bool = True,
    widths: tuple[int, ...] = WIDTHS,
) -> list[Variant]:
    """A first layer of up to 32 taps · channels for each width of tile; all but the image is aligned."""
    return [
        _convolution(
            f"{operator}_first_{tag}", operator, f"first_convolution_{types['w_ptr']}_{width}", function, types,
            architecture, True, fp_fusion,
        )
        for width in widths
    ]  # fmt: skip


def _convolution(
    stem: str, operator: str, key: str, function: Any, types: dict[str, str], architecture: int, aligned: bool,
    fp_fusion: bool,
) -> Variant:  # fmt: skip
    chosen = {"DEPTH": FIRST_DEPTH, **configurations.choose(operator, key, architecture)}
    names = function.arg_names
    pointers = [name for name in names if name.endswith("_ptr")]
    types = {name: f"*{_triton(types[name])}" for name in pointers}
    types |= {name: "i32" for name in names if name in INTEGERS} | {name: "fp32" for name in names if name in FLOATS}
    whole = [name for name in ("channels", "outputs") if name == "outputs" or "first" not in stem]
    if "first" in stem:
        pointers.remove("x_ptr")
    constants = {name: chosen[name] for name in ("ROWS", "COLUMNS", "DEPTH")}
    if "PAIRED" in names:
        constants["PAIRED"] = paired(architecture)
    return Variant(
        name=f"{stem}_{chosen['COLUMNS']}{'_aligned' if aligned else ''}",
        operator=operator,
        function=function,
        types=types,
        constants=constants,
        aligned=(*pointers, *whole) if aligned else (),
        num_warps=chosen["num_warps"],
        num_stages=chosen["num_stages"],
        fp_fusion=fp_fusion,
    )


def _triton(name: str) -> str:
    return {"fp8": "fp8e4nv"}.get(name, name)
