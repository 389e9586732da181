"""What this process may use: processors (how many, and what they can do) and optional packages (which are installed).

Every thread pool and every inference engine takes its number of threads from `available_cpus`. Only the standard
library is imported, so that the command line can limit numeric libraries before they are loaded (`limit_libraries`).

A folder or file that has a package's name can shadow the package: Python takes a folder with an `__init__.py`, or a
file, that comes first in the path, and a bare folder where the package is not installed. Beside a script or in the
working directory that is usually a user's own folder. `shadow` finds these cases.

`read_text` is the bounded reader for files of the system; a `Finding` is one line of `vae-edge doctor`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import stat
import sys
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING

from vae_edge.errors import ConfigError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
_DEFAULT_MOUNTS = (("cgroup2", "/sys/fs/cgroup"), ("cgroup", "/sys/fs/cgroup/cpu"))  # where mountinfo is unreadable

ISA_VARIABLE = "VAE_EDGE_CPU_ISA"
ISAS = ("avx2", "vnni")
_X86 = ("x86_64", "amd64", "i386", "i686", "x86")
_DOT_PRODUCT_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"})  # names in /proc/cpuinfo
_ISAS_WITHOUT_VNNI = frozenset({"SSE41", "AVX", "AVX2", "AVX512_CORE"})  # values of ONEDNN_MAX_CPU_ISA
_IDENTITY_FIELDS = frozenset(
    {
        *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
        *("cpu implementer", "cpu architecture", "cpu variant", "cpu part", "cpu revision", "features", "hardware"),
    }
)
"""Fields of /proc/cpuinfo that tell one kind of processor from another, x86 and Arm."""
_PACKAGE_ATTRIBUTES = {
    "accelerate": "Accelerator",
    "jinja2": "Environment",
    "matplotlib": "get_backend",
    "mlxtend": "__version__",
    "numpy": "ndarray",
    "onnx": "ModelProto",
    "onnxruntime": "InferenceSession",
    "onnxscript": "script",
    "openvino": "Core",
    "PIL": "Image",
    "safetensors": "safe_open",
    "skl2onnx": "convert_sklearn",
    "sklearn": "show_versions",
    "tensorrt": "__version__",
    "tensorrt_bindings": "__version__",
    "tensorrt_lean": "__version__",
    "tensorrt_rtx": "__version__",
    "tensorrt_rtx_bindings": "__version__",
    "torch": "Tensor",
    "triton": "jit",
}
"""An attribute by which each package is told from a user's module of the same name."""

DEVICE_TREES = ("proc/device-tree", "sys/firmware/devicetree/base", "run/host/device-tree")
"""Folders of the device tree below the root. A container masks the first two: docs/jetson.md mounts the third there."""
_MAX_TEXT_BYTES = 1 << 20


@dataclass(frozen=True)
class Finding:
    """Whether something works here, as `vae-edge doctor` prints it."""

    subject: str
    works: bool
    detail: str
    """What is there, or what is missing."""
    remedy: str = ""
    """The command that mends it; empty where nothing is to be done or no command does it."""


def read_text(path: Path, max_bytes: int = _MAX_TEXT_BYTES) -> str:
    """The first `max_bytes` of a file of the system, as text; what is not UTF-8 becomes U+FFFD.

    Empty where the file is missing, unreadable, or not a regular file. Never raises, and never waits on a pipe.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError):  # ValueError: a path with a NUL in it
        return ""
    content = bytearray()
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            while len(content) < max_bytes and (part := os.read(descriptor, max_bytes - len(content))):
                content += part
    except OSError:  # such as a thermal zone that is asleep
        return ""
    finally:
        os.close(descriptor)
    return content.decode("utf-8", "replace")


def available_cpus(root: Path = Path("/")) -> int:
    """Number of threads that can run at a time: the CPUs of the affinity mask, limited by the quota; at least 1.

    The quota is rounded down, or up from a remainder of 0.75. When a group has used up its time, a thread is stopped
    until the next period while the others spin at a barrier and use up the rest. So one thread too many costs more
    than a fraction of a processor that stays idle.

    Args:
        root: the folder that holds `proc` and `sys`, for tests.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = cpu_quota(root)
    return affinity if quota is None else max(1, min(affinity, int(quota + 0.25)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Processor time that the control groups of this process (its container) grant, such as 0.5; None: no limit.

    The minimum over the process's own group and all visible groups above it, of cgroup version 1
    (`cpu.cfs_quota_us`), version 2 (`cpu.max`), or both. What cannot be read sets no limit.
    """
    limits = [limit for folder in _control_groups(root) for limit in _group_quotas(folder)]
    return min(limits, default=None)


def limit_libraries(environment: MutableMapping[str, str] = os.environ, root: Path = Path("/")) -> None:
    """Set the thread variables of OpenMP, OpenBLAS, MKL and PyTorch's compiler, which do not see a quota themselves.

    Takes effect in this process if called before these libraries are loaded, and in its child processes. Variables
    that the user has set are kept. Without a quota nothing is set.
    """
    if cpu_quota(root) is not None:
        for name in _THREAD_VARIABLES:
            environment.setdefault(name, str(available_cpus(root)))


def _control_groups(root: Path) -> Iterator[Path]:
    """The folders of this process's control groups and of the groups above them."""
    paths = _group_paths(root)
    for kind, mounted, at in _cgroup_mounts(root):
        if kind not in paths:
            continue
        below = _path_below_mount(paths[kind], mounted)
        if below is None:
            continue
        top = root / at.lstrip("/")
        for depth in range(len(below), -1, -1):
            yield top.joinpath(*below[:depth])


def _group_paths(root: Path) -> dict[str, str]:
    """This process's group by kind of mount (`cgroup`, `cgroup2`), from /proc/self/cgroup."""
    paths = {}
    for line in _read_lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths["cgroup2"] = path
        elif "cpu" in controllers.split(","):
            paths["cgroup"] = path
    return paths


def _cgroup_mounts(root: Path) -> Iterator[tuple[str, str, str]]:
    """Mounts with the controller `cpu`: (kind, mounted group, mount point)."""
    lines = _read_lines(root / "proc/self/mountinfo")
    if not lines:
        yield from ((kind, "/", at) for kind, at in _DEFAULT_MOUNTS)
    for line in lines:
        first, _, last = line.partition(" - ")
        left, right = first.split(), last.split()
        if len(left) < 5 or len(right) < 3:
            continue
        if right[0] == "cgroup2" or (right[0] == "cgroup" and "cpu" in right[2].split(",")):
            yield right[0], _unescape_octal(left[3]), _unescape_octal(left[4])


def _path_below_mount(path: str, mounted: str) -> tuple[str, ...] | None:
    """The parts of a group's path below the mounted group; None where it is not below it.

    In a cgroup namespace both paths are relative to the namespace's root. A mount from `/..` holds that root below a
    name that is unknown here, so that only the mount itself can be read.
    """
    if mounted.startswith("/.."):
        return ()
    parts, start = PurePosixPath(path).parts[1:], PurePosixPath(mounted).parts[1:]
    inside = parts[: len(start)] == start and ".." not in parts
    return parts[len(start) :] if inside else None


def _group_quotas(folder: Path) -> Iterator[float]:
    """The quota of one group, of either cgroup version."""
    words = " ".join(_read_lines(folder / "cpu.max")).split()
    if len(words) == 2:
        yield from _quota_ratio(*words)
    quota, period = (" ".join(_read_lines(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
    yield from _quota_ratio(quota, period)


def _quota_ratio(quota: str, period: str) -> Iterator[float]:
    """quota / period, unless there is none ("max", -1) or they are not numbers."""
    if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
        yield int(quota) / int(period)


def _read_lines(path: Path) -> list[str]:
    """The lines of a small file; none where it is missing or unreadable."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _unescape_octal(text: str) -> str:
    """A path of mountinfo, where blanks are written as octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def cpu_model(root: Path = Path("/")) -> str:
    """The processor's name, such as "AMD EPYC 9654"; on a Jetson with the board's name before it.

    Args:
        root: the folder that holds `proc`, for tests.
    """
    parts = [board_model(root)]
    for line in read_text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("model name", "hardware") and value.strip():
            parts.append(value.strip())
            break
    return " ".join(filter(None, parts)) or platform.processor() or platform.machine() or "unknown processor"


def board_model(root: Path = Path("/")) -> str:
    """The board's name in the device tree, such as "NVIDIA Jetson AGX Orin Developer Kit"; empty without such a tree.

    Args:
        root: the folder that holds `proc` or `sys`, for tests.
    """
    names = (read_text(root / folder / "model", 4096).strip("\0\n ") for folder in DEVICE_TREES)
    return next(filter(None, names), "")


def int8_saturates() -> bool:
    """Whether int8 convolutions of CPU backends accumulate pairs of products in saturating 16 bits: x86 without VNNI.

    `VAE_EDGE_CPU_ISA` (`avx2` or `vnni`) overrides the answer, for tests. `ONEDNN_MAX_CPU_ISA` is respected, as in
    OpenVINO. Unreadable features of an x86 processor count as missing, which costs one bit of accuracy.

    Raises:
        ConfigError: for another value of `VAE_EDGE_CPU_ISA`.
    """
    forced = os.environ.get(ISA_VARIABLE, "").strip().lower()
    if forced and forced not in ISAS:
        raise ConfigError(f"{ISA_VARIABLE} is {' or '.join(ISAS)}, but {forced!r} came: unset it.")
    if forced:
        return forced == "avx2"
    if platform.machine().lower() not in _X86:
        return False
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").strip().upper() in _ISAS_WITHOUT_VNNI:
        return True
    return not _DOT_PRODUCT_FLAGS & _cpu_flags()


def instruction_set() -> str:
    """Architecture and int8 dot products, for messages: they decide how int8 is computed."""
    x86 = platform.machine().lower() in _X86
    dot_products = not int8_saturates() if x86 else "asimddp" in _cpu_flags()
    return f"{platform.machine()}, {'with' if dot_products else 'without'} int8 dot products"


def cpu_identity() -> str:
    """A hash of what tells one kind of processor from another, and of `int8_saturates`: 16 hexadecimal digits."""
    known = "".join(f"{key}:{value}\n" for key, value in _cpu_fields().items() if key in _IDENTITY_FIELDS)
    return hashlib.sha256(f"{platform.machine()} {int8_saturates()} {known}".encode()).hexdigest()[:16]


def _cpu_flags() -> set[str]:
    facts = _cpu_fields()
    return set((facts.get("flags") or facts.get("features") or "").split())


def _cpu_fields() -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo, by lower-case name; empty where there is no such file."""
    info, facts = Path("/proc/cpuinfo"), dict[str, str]()
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip().lower(), value.strip())
    return facts


class ShadowedError(ImportError):
    """A user's folder or file has the name of a package and hides it."""


def is_installed(name: str) -> bool:
    """Whether a package is installed and not shadowed."""
    return _spec(name) is not None and not shadow(name)


def package_folder(name: str) -> Path | None:
    """The folder of an installed package, without importing it."""
    spec = _spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def package_files(name: str, suffixes: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """The files of an installed package that end so, as (path in the package, content), in the order of their paths.

    Also those of a package that is imported from a zip file, such as a wheel on the path.
    """
    from importlib import resources  # slow to import, and rarely needed

    def below(folder: Traversable, path: PurePosixPath) -> Iterator[tuple[PurePosixPath, Traversable]]:
        for each in folder.iterdir():
            if each.is_dir():
                yield from below(each, path / each.name)
            elif each.name.endswith(suffixes):
                yield path / each.name, each

    for path, file in sorted(below(resources.files(name), PurePosixPath()), key=lambda pair: pair[0]):
        yield str(path), file.read_bytes()


def shadow(name: str) -> str:
    """A clause that names the folder or file that shadows a package; empty where there is none.

    A package in `site-packages` is trusted and not imported. Any other module of that name is imported and inspected.
    """
    spec = _spec(name)
    if spec is None or _is_in_site_packages(spec):
        return ""
    bare = spec.origin is None
    wrong = "" if bare or _is_running_script(spec) else _import_problem(name)
    if wrong is None:
        return ""
    place = _location(spec)
    what = "folder" if place.is_dir() else "file"
    package = f"the package {name}, which is not installed" if bare else f"the package {name}{wrong}"
    return f"the {what} {place} is taken for {package}: rename the {what}, or start Python elsewhere"


def _import_problem(name: str) -> str | None:
    """Why an imported module is not the package, in brackets; None where it is the package, or a broken copy of it."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        return f" ({error})"
    except (ImportError, OSError):  # a missing library: whoever imports the package reports it
        return None
    except Exception as error:  # a user's module may raise anything
        return f" ({type(error).__name__}: {error})"
    mark = _PACKAGE_ATTRIBUTES.get(name, "__name__")
    return None if hasattr(module, mark) else f" (it has no {mark})"


def import_package(name: str) -> ModuleType:
    """Import a package.

    Raises:
        ShadowedError: if a user's folder or file shadows it.
        ImportError: as the package raises it.
    """
    sentence = shadow(name)
    if sentence:
        raise ShadowedError(f"{sentence[0].upper()}{sentence[1:]}.", name=name)
    return importlib.import_module(name)


def shadows(names: Iterable[str] = tuple(_PACKAGE_ATTRIBUTES)) -> dict[str, str]:
    """The clauses of `shadow` for those packages that are shadowed."""
    found = {name: shadow(name) for name in names}
    return {name: sentence for name, sentence in found.items() if sentence}


def _spec(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ValueError:  # sys.modules holds a module without a spec
        return None


def _location(spec: ModuleSpec) -> Path:
    """The folder or file that a module is loaded from."""
    locations = list(spec.submodule_search_locations or ())
    return Path(locations[0] if locations else spec.origin or spec.name).absolute()


def _is_in_site_packages(spec: ModuleSpec) -> bool:
    """Whether the module lies directly in a folder of installed packages."""
    return spec.origin is not None and _location(spec).parent.name in ("site-packages", "dist-packages")


def _is_running_script(spec: ModuleSpec) -> bool:
    """Whether the module is the running script, which an import would run a second time."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return bool(main and spec.origin) and Path(str(main)).absolute() == Path(str(spec.origin)).absolute()
