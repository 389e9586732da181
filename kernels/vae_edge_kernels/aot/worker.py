"""Compile every kernel for one architecture, in a process of its own: some targets abort the compiler.

    python -m vae_edge_kernels.aot.worker ARCHITECTURE FOLDER [--ptx] [--only PATTERN]

Writes `NAME.cubin` (with --ptx also `NAME.ptx`) into the folder, and the entries of the manifest as JSON to
`FOLDER/kernels.json`.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vae_edge_kernels import KernelError
from vae_edge_kernels.aot import CTAS_PER_IMAGE, SCRATCH
from vae_edge_kernels.config import KernelSpec

OPERATOR_MODULES = ("reparameterize", "conv", "rotate", "avg_pool", "reconstruction_error")


def operator_modules() -> list[Any]:
    """The modules whose kernels are in the native library, in the order of its table."""
    from importlib import import_module

    return [import_module(f"vae_edge_kernels.{name}") for name in OPERATOR_MODULES]


def kernel_specs(
    architecture: int, layout: str | None = None, label: str = "", ctas_per_image: int = CTAS_PER_IMAGE
) -> Iterator[KernelSpec]:
    """The kernels to compile.

    Args:
        architecture: 87 is sm_87.
        layout: JSON of a network whose kernels are compiled instead of the library's.
        label: appended to the names of a network's kernels.
        ctas_per_image: CTAs that work on one image, in the kernel that has several.
    """
    if layout is None:
        for module in operator_modules():
            yield from module.kernel_specs(architecture)
        return

    from vae_edge_kernels import heads, network
    from vae_edge_kernels.layout import from_json

    net = from_json(layout)
    whole = [network.kernel_spec(net, architecture, count) for count in sorted({1, ctas_per_image})]
    for spec in whole + heads.network_variants(net, architecture):
        yield replace(spec, name=f"{spec.name}{label}")


def compile_spec(spec: KernelSpec, architecture: int) -> tuple[dict[str, Any], bytes, str]:
    """Compile one kernel: its entry of the manifest, its machine code (cubin), and its PTX.

    Raises:
        KernelError: if the machine code needs something at launch that the native library does not give.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(spec.function.arg_names)
    source = ASTSource(
        fn=spec.function,
        signature={name: "constexpr" if name in spec.constants else spec.types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in spec.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in spec.aligned},
    )
    options = {"num_warps": spec.num_warps, "num_stages": spec.num_stages, "enable_fp_fusion": spec.fp_fusion}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    _check_metadata(spec.name, compiled.metadata)

    # The manifest lists the arguments as they are passed: Triton appends two scratch pointers.
    cubin = compiled.asm["cubin"]
    arguments = [
        {"name": name, "type": spec.types[name], "aligned": 16 if name in spec.aligned else 1}
        for name in names
        if name not in spec.constants
    ]
    arguments += [{"name": name, "type": "*i8", "aligned": 1} for name in SCRATCH]
    entry = {
        "name": spec.name,
        "operator": spec.operator,
        "entry": compiled.metadata.name,
        "arguments": arguments,
        "cubin": {
            "architecture": architecture,
            "constants": {name: value for name, value in spec.constants.items() if isinstance(value, int)},
            "warps": compiled.metadata.num_warps,
            "shared_bytes": compiled.metadata.shared,
            "bytes": len(cubin),
            "sha256": hashlib.sha256(cubin).hexdigest(),
        },
    }
    return entry, cubin, compiled.asm["ptx"]


def _check_metadata(name: str, metadata: Any) -> None:
    """Refuse a kernel that asks at launch for what the native library does not give."""
    expected: tuple[tuple[str, object], ...] = (
        ("global_scratch_size", 0),
        ("profile_scratch_size", 0),
        ("num_ctas", 1),
        ("launch_cooperative_grid", False),
        ("launch_pdl", False),
        ("tensordesc_meta", []),
    )
    for field, usual in expected:
        value = getattr(metadata, field, usual)
        if value != usual and value:
            raise KernelError(
                f"Kernel {name} needs {field}={value} at launch, which the native library does not give; "
                "write it without, or extend kernels/native."
            )


def main(arguments: list[str]) -> int:
    """Compile for one architecture; exit code 2 and a sentence on an error that has a name."""
    parser = argparse.ArgumentParser(prog="python -m vae_edge_kernels.aot.worker")
    parser.add_argument("architecture", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ptx", action="store_true", help="write the PTX beside the machine code")
    parser.add_argument("--network", type=Path, help="compile the network of the layout in this file, and nothing else")
    parser.add_argument("--ctas-per-image", type=int, default=CTAS_PER_IMAGE, help="CTAs that work on one image")
    parser.add_argument("--label", default="", help="appended to the names of a network's kernels")
    parser.add_argument("--only", default="*", help="compile the kernels whose names fit this pattern")
    options = parser.parse_args(arguments)

    entries = []
    try:
        layout = None if options.network is None else options.network.read_text(encoding="utf-8")
        for spec in kernel_specs(options.architecture, layout, options.label, options.ctas_per_image):
            if not fnmatch.fnmatchcase(spec.name, options.only):
                continue
            entry, cubin, ptx = compile_spec(spec, options.architecture)
            (options.folder / f"{spec.name}.cubin").write_bytes(cubin)
            if options.ptx:
                (options.folder / f"{spec.name}.ptx").write_text(ptx, encoding="utf-8")
            entries.append(entry)
    except KernelError as error:
        print(error, file=sys.stderr)
        return 2

    (options.folder / "kernels.json").write_text(json.dumps(entries), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
