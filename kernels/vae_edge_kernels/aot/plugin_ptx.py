"""PTX in the order of arguments in which TensorRT launches a plugin's kernel.

TensorRT passes pointers to the inputs, 32-bit integers, then pointers to the outputs. It passes nothing else: no
workspace, no floats, and not the two scratch pointers with which Triton ends every list of parameters. PTX names its
parameters where it reads them (`ld.param.b64 %rd1, [network_param_4]`), so their declarations can be put into any
order, and one that no instruction names can be left out.

TensorRT assembles the PTX itself, with options that nobody can give it. What Triton says by an option of ptxas is
therefore said in the text: with `fp_fusion=False`, that no product and sum become one fma.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vae_edge_kernels import KernelError

PTX_VERSIONS = ("7.8", "8.0", "8.3", "8.5", "8.6", "8.7", "8.8", "9.0", "9.1", "9.2", "9.3")

_VERSION = re.compile(r"^\.version\s+(\d+\.\d+)", re.MULTILINE)
_ENTRY = re.compile(r"\.visible\s+\.entry\s+([\w$]+)\s*\(([^)]*)\)")
_PARAMETER = re.compile(r"\.param\b.*?([\w$]+)\s*$", re.DOTALL)
_FUNCTION = re.compile(r"^\s*(?:\.\w+\s+)*\.func\s+(?:\([^)]*\)\s*)?([\w$]+)", re.MULTILINE)
_TOKEN = re.compile(r"[A-Za-z_$][\w$]*")
_PART = re.compile(r"(.+?)((?:_param_\d+|_retval\d*|_local_depot\d*)?)")
_FUSIBLE = re.compile(r"(?<![\w.])(add|sub|mul)((?:\.ftz)?(?:\.sat)?\.(?:f64|f32x2|f32|b?f16x2|b?f16))\b")


@dataclass(frozen=True)
class PluginPtx:
    """A kernel as TensorRT launches it.

    Attributes:
        text: the PTX.
        entry: name of its entry.
        arguments: names of the entry's parameters, in order.
    """

    text: str
    entry: str
    arguments: tuple[str, ...]


def in_tensorrt_order(
    ptx: str,
    arguments: Sequence[str],
    inputs: Sequence[str],
    scalars: Sequence[str],
    outputs: Sequence[str],
    *,
    fp_fusion: bool = True,
    aliases: Mapping[str, str] | None = None,
) -> PluginPtx:
    """Declare a compiled kernel's parameters as TensorRT passes them: inputs, scalars, outputs.

    Args:
        ptx: as Triton compiled it, with one entry.
        arguments: names of the entry's parameters in the order of the PTX, the two scratch pointers of Triton included
            (`arguments` of the ahead-of-time compiler's manifest).
        inputs: of these, the pointers to what the kernel reads, in the plugin's order.
        scalars: the 32-bit integers.
        outputs: the pointers to what it writes; memory to work in is an output too, since a plugin of this kind has no
            workspace.
        fp_fusion: whether the kernel was compiled with it.
        aliases: parameters that take the value of another one: pointers from which nothing is read.

    Parameters that are named nowhere must be unused; they are left out.

    Raises:
        KernelError: the PTX has no such entry, a name is unknown or stands twice, a parameter that would be left out
            is used, or a scalar is no 32-bit integer.
    """
    head = _ENTRY.findall(ptx)
    if len(head) != 1:
        raise KernelError(f"The PTX of a plugin's kernel should have one entry; it has {len(head)}.")
    (entry, declarations), order = head[0], [*inputs, *scalars, *outputs]
    declared = [part.strip() for part in declarations.split(",")]
    if len(declared) != len(arguments):
        raise KernelError(f"The PTX of {entry} has {len(declared)} parameters, and {len(arguments)} names were given.")
    unknown = [name for name in order if name not in arguments]
    unknown += [name for pair in (aliases or {}).items() for name in pair if name not in arguments]
    if unknown or len(set(order)) != len(order):
        raise KernelError(
            f"The arguments of {entry} for TensorRT should be different ones of {', '.join(arguments)}; given were "
            f"{', '.join([*order, *unknown])}."
        )

    by_name, symbols = dict(zip(arguments, declared, strict=True)), {}
    for name, declaration in by_name.items():
        symbol = _PARAMETER.match(declaration)
        if symbol is None:
            raise KernelError(f"The parameter {declaration!r} of {entry} is not known; is this PTX of Triton?")
        symbols[name] = symbol.group(1)

    start, end = _ENTRY.search(ptx).span()  # type: ignore[union-attr]
    before, rest = ptx[:start], ptx[end:]
    for name, other in (aliases or {}).items():
        rest = re.sub(rf"\[{re.escape(symbols[name])}\]", f"[{symbols[other]}]", rest)
    for name, declaration in by_name.items():
        if name in scalars and ".u32" not in declaration and ".b32" not in declaration and ".s32" not in declaration:
            raise KernelError(
                f"TensorRT passes 32-bit integers alone, and {name} of {entry} is declared as {declaration!r}: compile "
                "it as a constant, or read it from an input."
            )
        if name not in order and re.search(rf"{re.escape(symbols[name])}(?![\w$])", rest):
            raise KernelError(
                f"{entry} uses its parameter {name}, for which TensorRT has no argument; it passes "
                f"{', '.join(order)}. Write the kernel without, or pass it as an input or output."
            )

    kept = ",\n".join(f"\t{by_name[name]}" for name in order)
    text = f"{before}.visible .entry {entry}(\n{kept}\n){rest}"
    if not fp_fusion:
        text = _FUSIBLE.sub(r"\1.rn\2", text)
    return PluginPtx(_with_short_names(text), entry, tuple(order))


def _with_short_names(ptx: str) -> str:
    """The functions of a module by short names, in the same alphabetical order, in which ptxas lays them out.

    Triton calls a function by its constants, which in a network are thousands of letters in every call.
    """
    short = {name: f"f{number:03d}" for number, name in enumerate(sorted(set(_FUNCTION.findall(ptx))))}

    def rename(token: re.Match[str]) -> str:
        part = _PART.fullmatch(token.group())
        assert part is not None
        return short[part[1]] + part[2] if part[1] in short else token.group()

    return _TOKEN.sub(rename, ptx)


def with_oldest_version(ptx: str, architecture: int) -> str:
    """The PTX under the oldest version of the language in which ptxas takes it.

    Triton writes the version of its own ptxas (9.4 for sm_90 and later, with Triton 3.9), which an assembler of an
    older CUDA refuses whatever the text uses: JetPack 7.0 has CUDA 13.0, which knows PTX 9.0.

    Raises:
        KernelError: ptxas takes it in no version.
    """
    declared = _VERSION.search(ptx)
    if declared is None:
        raise KernelError("The PTX says no version; is this PTX of Triton?")
    number = tuple(map(int, declared[1].split(".")))
    for version in (each for each in PTX_VERSIONS if tuple(map(int, each.split("."))) < number):
        older = ptx[: declared.start(1)] + version + ptx[declared.end(1) :]
        if _assembles(older, architecture):
            return older
    assemble(ptx, architecture)
    return ptx


def _assembles(ptx: str, architecture: int) -> bool:
    try:
        assemble(ptx, architecture)
    except KernelError:
        return False
    return True


def assemble(ptx: str, architecture: int) -> bytes:
    """Machine code (cubin) of PTX, by the ptxas that Triton brings. 87 is sm_87.

    Raises:
        KernelError: ptxas is missing or refuses the text; with what it says.
    """
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    with tempfile.TemporaryDirectory(prefix="vae-edge-ptx-") as folder:
        source, made = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx, encoding="utf-8")
        command = ["--regAllocOptLevel=2"]  # as Triton assembles: around a fault of ptxas 13
        command += [f"--gpu-name={sm_arch_from_capability(architecture)}", str(source), "-o", str(made)]
        try:
            done = subprocess.run(
                [get_ptxas(architecture).path, *command], capture_output=True, text=True, errors="replace", check=False
            )
        except (OSError, RuntimeError) as error:
            raise KernelError(
                f"There is no working ptxas for sm_{architecture} ({error}); reinstall Triton."
            ) from error
        if done.returncode != 0:
            raise KernelError(f"ptxas refuses the PTX for sm_{architecture}: {(done.stderr or done.stdout).strip()}")
        return made.read_bytes()
