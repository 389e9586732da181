"""Compile every kernel for one architecture, in a process of its own, because some targets abort the compiler.

    python -m vae_edge_kernels.aot_worker ARCHITECTURE FOLDER [--ptx] [--only PATTERN]

Writes `NAME.cubin` (with --ptx also `NAME.ptx`) into the folder, and the entries for the manifest as JSON to
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

from vae_edge.errors import KernelError
from vae_edge_kernels.aot import SPREAD
from vae_edge_kernels.variants import Variant

OPERATORS = (
    *("reparameterize", "convolution", "convolution_int8", "convolution_fp8", "upsample_convolution", "rotate"),
    *("means", "reconstruction_error"),
)
SCRATCH = ("global_scratch", "profile_scratch")


def operators() -> list[Any]:
    """The module of each operator in the library, in the order of the table."""
    from importlib import import_module

    return [import_module(f"vae_edge_kernels.{name}") for name in OPERATORS]


def wanted(architecture: int, plan: str | None = None, label: str = "", programs: int = SPREAD) -> Iterator[Variant]:
    """The kernels to compile: the library's, or those of the network of a plan, their names with `label` behind."""
    if plan is None:
        for module in operators():
            yield from module.variants(architecture)
    else:
        from vae_edge_kernels import heads, network
        from vae_edge_kernels.layout import from_json

        given = from_json(plan)
        whole = [network.kernel_spec(given, architecture, count) for count in sorted({1, programs})]
        for variant in whole + heads.network_variants(given, architecture):
            yield replace(variant, name=f"{variant.name}{label}")


def compile_variant(variant: Variant, architecture: int) -> tuple[dict[str, Any], bytes, str]:
    """Compile one kernel: its entry for the manifest, its machine code, and its PTX.

    Raises:
        KernelError: if the machine code needs something at launch that the native library does not give.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(variant.function.arg_names)
    source = ASTSource(
        fn=variant.function,
        signature={name: "constexpr" if name in variant.constants else variant.types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in variant.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned},
    )
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, "enable_fp_fusion": variant.fp_fusion}
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    _refuse_unusual(variant.name, made.metadata)
    cubin = made.asm["cubin"]
    arguments = [
        {"name": name, "type": variant.types[name], "aligned": 16 if name in variant.aligned else 1}
        for name in names
        if name not in variant.constants
    ]
    arguments += [{"name": name, "type": "*i8", "aligned": 1} for name in SCRATCH]
    entry = {
        "name": variant.name,
        "operator": variant.operator,
        "entry": made.metadata.name,
        "arguments": arguments,
        "cubin": {
            "architecture": architecture,
            "constants": {name: value for name, value in variant.constants.items() if isinstance(value, int)},
            "warps": made.metadata.num_warps,
            "shared_bytes": made.metadata.shared,
            "bytes": len(cubin),
            "sha256": hashlib.sha256(cubin).hexdigest(),
        },
    }
    return entry, cubin, made.asm["ptx"]


def _refuse_unusual(name: str, metadata: Any) -> None:
    expected: tuple[tuple[str, object], ...] = (
        ("global_scratch_size", 0),
        ("profile_scratch_size", 0),
        ("num_ctas", 1),
        ("launch_cooperative_grid", False),
        ("launch_pdl", False),
        ("tensordesc_meta", []),
    )
    for what, usual in expected:
        value = getattr(metadata, what, usual)
        if value != usual and value:
            raise KernelError(
                f"Kernel {name} needs {what}={value} at launch, which the native library does not give; "
                "write it without, or extend kernels/native."
            )


def main(arguments: list[str]) -> int:
    """Compile for one architecture; exit code 2 and a sentence on an error that has a name."""
    parser = argparse.ArgumentParser(prog="python -m vae_edge_kernels.aot_worker")
    parser.add_argument("architecture", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ptx", action="store_true", help="write the PTX beside the machine code")
    parser.add_argument("--network", type=Path, help="compile the network of the plan in this file, and nothing else")
    parser.add_argument("--programs", type=int, default=SPREAD, help="that an image is spread over, where it is")
    parser.add_argument("--label", default="", help="what stands behind the names of a network's kernels")
    parser.add_argument("--only", default="*", help="compile the kernels whose names fit this pattern")
    options = parser.parse_args(arguments)
    entries = []
    try:
        plan = None if options.network is None else options.network.read_text(encoding="utf-8")
        for variant in wanted(options.architecture, plan, options.label, options.programs):
            if not fnmatch.fnmatchcase(variant.name, options.only):
                continue
            entry, cubin, ptx = compile_variant(variant, options.architecture)
            (options.folder / f"{variant.name}.cubin").write_bytes(cubin)
            if options.ptx:
                (options.folder / f"{variant.name}.ptx").write_text(ptx, encoding="utf-8")
            entries.append(entry)
    except KernelError as error:
        print(error, file=sys.stderr)
        return 2
    (options.folder / "kernels.json").write_text(json.dumps(entries), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
