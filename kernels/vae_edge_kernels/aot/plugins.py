"""Kernels as plugins of TensorRT: what each operator's node computes, compiled, as one file a node.

`plugin_operators` describes what a node computes. A kernel file, `PREFIX` and then one line of JSON and the code, is
read by `vae_edge.engine.plugins`, which needs neither Triton nor this package:

    operator    type of the node
    inputs      types of the tensors, in the node's order
    outputs     [{name, dtype, shape}, …], in the node's order
    scratch     the same, of memory that the kernel works in; it is written before it is read
    scalars     int32 arguments
    codes       [{architecture, variant, entry, warps, shared_bytes, grid, ptx_bytes, cubin_bytes}, …]

The kernel's arguments are pointers to the inputs, the scalars, and pointers to the outputs and the scratch memory. A
dimension, a scalar and a side of the grid are an expression: a number, ["dim", input, axis], or
[operation, left, right] with the operations + - * // cdiv min. Types are NumPy's.

A node of a whole network runs one program an image. Two or more wait for one another and need a cooperative launch,
which TensorRT does not offer to a plugin.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vae_edge_kernels import KernelError
from vae_edge_kernels.aot import ARCHITECTURES, check_tools, compiler_environment
from vae_edge_kernels.aot.plugin_operators import Attributes, Buffer, Inputs, describe

PREFIX = b"vae-edge plugin kernel 1\n"
MAX_SHARED_BYTES = 48 * 1024  # more needs an attribute of the kernel, which TensorRT is not known to set
NUMPY_DTYPES = {"u8": "uint8", "i8": "int8", "fp16": "float16", "fp32": "float32", "i64": "int64"}


def compile_plugin(
    operator: str,
    inputs: Inputs,
    attributes: Attributes,
    architectures: Sequence[int],
    *,
    cubins: bool = True,
    variants: bool = False,
) -> bytes:
    """The kernel file of a node.

    Args:
        operator, inputs, attributes: as of `describe`.
        architectures: 87 is sm_87.
        cubins: with machine code, and not with PTX alone.
        variants: with all variants of the kernel, and not the configured one alone.

    Raises:
        KernelError: as `describe`; or a kernel does not compile, or needs what TensorRT does not give.
    """
    for architecture in architectures:
        if architecture not in ARCHITECTURES:
            known = ", ".join(f"sm_{each}" for each in ARCHITECTURES)
            raise KernelError(f"No kernel can be compiled for sm_{architecture}; known are {known}.")
    check_tools(architectures)
    kernel = describe(operator, inputs, attributes)
    request = {
        "operator": operator,
        "inputs": [[each.dtype, list(each.shape)] for each in inputs],
        "attributes": dict(attributes),
        "architectures": list(architectures),
        "cubins": cubins,
        "variants": kernel.variants if variants else 1,
    }
    with tempfile.TemporaryDirectory(prefix="vae-edge-plugin-") as folder:
        made = Path(folder) / "codes"
        made.mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "vae_edge_kernels.aot.plugin_worker", str(made)],
            input=json.dumps(request),
            env=compiler_environment(Path(folder) / "cache"),
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            cwd=folder,
        )
        if done.returncode != 0:
            last = "\n".join(done.stderr.strip().splitlines()[-15:])
            raise KernelError(f"Compiling the plugin {operator} failed: the compiler's process said:\n{last}")
        codes = json.loads((made / "codes.json").read_text(encoding="utf-8"))
        blobs = [(made / code.pop(kind)).read_bytes() for code in codes for kind in ("ptx", "cubin")]

    def buffers(made: Sequence[Buffer]) -> list[dict[str, Any]]:
        return [
            {"name": each.name.removesuffix("_ptr"), "dtype": NUMPY_DTYPES[each.dtype], "shape": each.shape}
            for each in made
        ]

    header = {
        "operator": operator,
        "inputs": [NUMPY_DTYPES[each.dtype] for each in inputs],
        "outputs": buffers(kernel.outputs),
        "scratch": buffers(kernel.scratch),
        "scalars": [expression for _, expression in kernel.scalars],
        "codes": codes,
    }
    return PREFIX + json.dumps(header).encode() + b"\n" + b"".join(blobs)
