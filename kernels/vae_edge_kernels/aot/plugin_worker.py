"""Compile the kernel of one plugin, in a process of its own: some targets abort the compiler.

    python -m vae_edge_kernels.aot.plugin_worker FOLDER

Reads a request of `aot.plugins.compile_plugin` as JSON from standard input. Writes the codes' files into the folder and
their list to `FOLDER/codes.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vae_edge_kernels import KernelError
from vae_edge_kernels.aot.plugin_operators import PluginKernel, TensorType, describe
from vae_edge_kernels.aot.plugin_ptx import assemble, in_tensorrt_order, with_oldest_version
from vae_edge_kernels.aot.plugins import MAX_SHARED_BYTES
from vae_edge_kernels.aot.worker import compile_spec


def compile_code(
    kernel: PluginKernel, architecture: int, variant: int, cubin: bool
) -> tuple[dict[str, Any], str, bytes]:
    """One kernel: its entry in a kernel file without the sizes, its PTX, and its machine code (empty if not `cubin`).

    Raises:
        KernelError: it does not compile, or needs what TensorRT does not give a plugin.
    """
    spec, grid = kernel.launch(architecture, variant)
    entry, _, ptx = compile_spec(spec, architecture)
    if entry["cubin"]["shared_bytes"] > MAX_SHARED_BYTES:
        raise KernelError(
            f"The kernel {spec.name} takes {entry['cubin']['shared_bytes']} bytes of shared memory on "
            f"sm_{architecture}, and a plugin may take {MAX_SHARED_BYTES}: use a network of fewer channels, or the "
            "native library."
        )
    made = in_tensorrt_order(
        ptx,
        [argument["name"] for argument in entry["arguments"]],
        kernel.inputs,
        [name for name, _ in kernel.scalars],
        [buffer.name for buffer in (*kernel.outputs, *kernel.scratch)],
        fp_fusion=spec.fp_fusion,
        aliases=dict(kernel.aliases),
    )
    text = with_oldest_version(made.text, architecture)
    code = {
        "architecture": architecture,
        "variant": variant,
        "entry": made.entry,
        "warps": entry["cubin"]["warps"],
        "shared_bytes": entry["cubin"]["shared_bytes"],
        "grid": grid,
    }
    return code, text, assemble(text, architecture) if cubin else b""


def main(folder: Path) -> int:
    """Compile what standard input asks for; exit code 2 and a sentence on an error that has a name."""
    request = json.load(sys.stdin)
    inputs = [TensorType(dtype, tuple(shape)) for dtype, shape in request["inputs"]]
    codes = []
    try:
        kernel = describe(request["operator"], inputs, request["attributes"])
        for architecture in request["architectures"]:
            for variant in range(request["variants"]):
                code, ptx, cubin = compile_code(kernel, architecture, variant, request["cubins"])
                name = f"{architecture}-{variant}"
                (folder / f"{name}.ptx").write_text(ptx, encoding="utf-8")
                (folder / f"{name}.cubin").write_bytes(cubin)
                sizes = {"ptx_bytes": len(ptx.encode()), "cubin_bytes": len(cubin)}
                codes.append({**code, **sizes, "ptx": f"{name}.ptx", "cubin": f"{name}.cubin"})
    except KernelError as error:
        print(error, file=sys.stderr)
        return 2
    (folder / "codes.json").write_text(json.dumps(codes), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
