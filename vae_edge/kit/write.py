"""Writing a kit at home: the bundle, a script, a wheel of this installation, held-out images, sums, a page to read."""

from __future__ import annotations

import datetime
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_edge import __version__, files
from vae_edge.bundle import Bundle, ModelEntry, create_bundle
from vae_edge.engine.devices import TargetDevice, find_targets
from vae_edge.engine.gpus import DEVICES, check_local_gpu, covers
from vae_edge.engine.tensorrt import BuildConfig
from vae_edge.errors import BundleError, ConfigError, EngineError
from vae_edge.kit import script
from vae_edge.kit.archive import write_archive, write_sums
from vae_edge.kit.description import (
    BUNDLE_FOLDER,
    DATA_FILE,
    KIT_FILE,
    README,
    SCRIPT,
    SUMS_FILE,
    HeldOut,
    KitDescription,
    write_held_out,
)
from vae_edge.kit.measure import evaluate
from vae_edge.kit.wheel import wheel_name, write_wheel

log = logging.getLogger(__name__)

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz")


@dataclass(frozen=True)
class Kit:
    """A kit that was written: its folder or .tar.gz, the device, the precisions, its size in bytes, and the images."""

    path: Path
    device: TargetDevice
    precisions: tuple[str, ...]
    bytes: int
    images: int

    def to_json(self) -> dict[str, Any]:
        """As `vae-edge build` prints it."""
        return {
            "kit": str(self.path),
            "device": self.device.name,
            "target": self.device.target,
            "precisions": list(self.precisions),
            "bytes": self.bytes,
            "images": self.images,
        }


def kit_device(name: str) -> TargetDevice:
    """The device of this name; of an architecture's name, a device of which no figure is known.

    Raises:
        EngineError: the name is unknown, or stands for several or for this machine.
    """
    found = find_targets(name)
    if len(found.architectures) != 1:
        raise EngineError(f"A kit is for one device, but {name!r} was given: name one that `vae-edge devices` lists.")
    if found.devices:
        return found.devices[0]
    target = found.architectures[0]
    capability = (int(target[3:-1]), int(target[-1]))
    return TargetDevice(target, DEVICES[target], capability, None, None, None)


def write(
    bundle: Bundle,
    device: TargetDevice,
    configs: Sequence[BuildConfig],
    out: str | os.PathLike[str],
    held_out: HeldOut | None = None,
) -> Kit:
    """Write a kit as a folder, or as a file where `out` ends in .tar.gz.

    Everything is written beside `out` and put there by a rename, once it is complete; a kit that is there is replaced.

    Args:
        bundle: what the engines are built from.
        device: where they are built.
        configs: what to build; each of another precision.
        held_out: images by which the device measures the accuracy of the engines.

    Raises:
        ConfigError: `out` is something else than a kit, or cannot be written.
        BundleError: the bundle lacks a precision.
        EngineError: the device cannot run such an engine.
    """
    path = Path(out)
    _check_out(path)
    _check_configs(device, configs)
    sources = [_source(bundle, config) for config in configs]
    packed = path.name.endswith(ARCHIVE_SUFFIXES)
    top = _stem(path) if packed else path.name
    parent = path.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".part", dir=parent) as temporary:
            folder = Path(temporary) / top
            _fill(folder, bundle, device, configs, sources, held_out)
            size = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
            if packed:
                write_archive(path, folder, top)
                size = path.stat().st_size
            else:
                if path.exists():
                    path.rename(Path(temporary) / "before")
                folder.rename(path)
    except OSError as error:
        raise ConfigError(
            f"The kit {path} cannot be written ({error.strerror or error}): free some space, or name another place."
        ) from error
    images = 0 if held_out is None else len(held_out)
    return Kit(path, device, tuple(config.precision for config in configs), size, images)


def _check_out(path: Path) -> None:
    if path.name.endswith(ARCHIVE_SUFFIXES):
        files.check_file(path)
        return
    files.check_folder(path)
    if path.is_dir() and any(path.iterdir()) and not (path / KIT_FILE).is_file():
        raise ConfigError(f"{path} is a folder with other things in it, and no kit: name another place.")


def _stem(path: Path) -> str:
    """The archive's own folder: its name without the suffix, as far as that is plain."""
    name = next(path.name.removesuffix(suffix) for suffix in ARCHIVE_SUFFIXES if path.name.endswith(suffix))
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._+-") else "-" for c in name).lstrip(".-+")
    return plain or "kit"


def _check_configs(device: TargetDevice, configs: Sequence[BuildConfig]) -> None:
    if not configs:
        raise ConfigError("A kit builds at least one precision, but none was named.")
    precisions = [config.precision for config in configs]
    if len(set(precisions)) != len(precisions):
        raise ConfigError(f"A kit builds each precision once, but {', '.join(precisions)} were named.")
    for config in configs:
        check_local_gpu(device.target, config.precision, config.dla_core is not None)
        if config.dla_core is not None and config.dla_core >= device.dla_cores and device.source:
            raise EngineError(
                f"{device.product} has {device.dla_cores or 'no'} DLA cores, and core {config.dla_core} was asked for: "
                "leave the DLA out, or name another device."
            )
        if config.timing_cache is not None:
            raise EngineError("A timing cache holds what one GPU measured: leave it out of a kit for another.")
        if config.device:
            raise EngineError("A kit builds on the device's first GPU; `sh build.sh --device N` names another there.")


def _source(bundle: Bundle, config: BuildConfig) -> ModelEntry:
    found = bundle.select(config.role, "onnx", config.precision, "any")
    if not found:
        has = ", ".join(entry.precision for entry in bundle.select(config.role, "onnx", target="any")) or "none"
        raise BundleError(
            f"The bundle {bundle.path} has no {config.precision} ONNX {config.role} to put into a kit (it has: {has}): "
            f"add it with `vae-edge quantize {bundle.path} --precision {config.precision} --data PATH`."
        )
    return found[0]


def _fill(
    folder: Path,
    bundle: Bundle,
    device: TargetDevice,
    configs: Sequence[BuildConfig],
    sources: Sequence[ModelEntry],
    held_out: HeldOut | None,
) -> None:
    """Write everything that is in a kit into a new folder."""
    folder.mkdir()
    networks = [entry for entry in bundle.select(format="native") if covers(entry.target, device.target)]
    manifest = bundle.manifest
    create_bundle(
        folder / BUNDLE_FOLDER,
        name=bundle.name,
        classes=bundle.classes,
        input=bundle.input,
        threshold=bundle.threshold,
        reject_rate=bundle.reject_rate,
        score_mode=bundle.score_mode,
        rotation=bundle.rotation,
        data=manifest["data"],
        models=[(bundle.file(entry), entry) for entry in (*sources, *networks)],
        probes=None if bundle.probes is None else bundle.file(bundle.probes),
    )
    wheel = wheel_name()
    write_wheel(folder / wheel)
    if held_out is not None:
        write_held_out(folder / DATA_FILE, held_out)
    description = KitDescription(
        device=device.name,
        product=device.product,
        target=device.target,
        jetson=device.jetson,
        bundle=bundle.name,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        vae_edge=__version__,
        configs=tuple(configs),
        expected={entry.precision: dict(entry.accuracy) for entry in sources},
        measured={} if held_out is None else _measure_here(bundle, folder / BUNDLE_FOLDER, sources, held_out),
        data=None if held_out is None else {"name": held_out.name, "split": held_out.split},
    )
    files.write_json(folder / KIT_FILE, description.to_json())
    script_file = folder / SCRIPT
    files.write_text(script_file, script.build_script(description, wheel))
    script_file.chmod(0o755)
    files.write_text(folder / README, script.readme(description))
    left = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    write_sums(folder, [name for name in left if name != SUMS_FILE], SUMS_FILE)


def _measure_here(
    home: Bundle, kit_bundle: Path, sources: Sequence[ModelEntry], held_out: HeldOut
) -> Mapping[str, Any]:
    """The figures of the ONNX files, and of the fp32 one, on the kit's images, by ONNX Runtime; empty without it."""
    from vae_edge.runtime import installed_backends, load

    found: dict[str, Any] = {}
    if "onnxruntime" not in installed_backends(gpu=False):
        log.info("ONNX Runtime is not installed: the kit's images are measured on the device alone")
        return found
    places = {"fp32": home.path} if home.select("classifier", "onnx", "fp32") else {}
    places |= {entry.precision: kit_bundle for entry in sources if entry.role == "classifier"}
    for precision, place in places.items():
        with load(place, "onnxruntime", precision, verify="off") as classifier:
            found[precision] = evaluate(classifier, held_out, home)
    return found
