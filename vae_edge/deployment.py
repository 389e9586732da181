"""From a bundle to what runs on a device, as Python functions: engines, kits, and the results that kits bring back.

    vae_edge.build_engine("photos.bundle", precision="int8", targets=("rtx-4090",))
    vae_edge.write_kit("photos.bundle", "orin-nano", ("int8",), "photos-orin-nano.tar.gz", data="photos")
    vae_edge.add_result("result-orin-nano-2026-11-26.tar.gz", "photos.bundle")

Importing this module imports neither torch nor onnx; each function imports what it needs.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vae_edge.errors import ConfigError, VaeEdgeError
from vae_edge.files import check_folder

if TYPE_CHECKING:
    from vae_edge.bundle import Bundle
    from vae_edge.data import Dataset
    from vae_edge.engine.build import BundleEngine
    from vae_edge.engine.builder import Notice, Progress
    from vae_edge.engine.devices import TargetDevice, Targets
    from vae_edge.engine.tensorrt import BuildConfig
    from vae_edge.exporting.network_file import BundleNetwork
    from vae_edge.kit.description import HeldOut
    from vae_edge.kit.result import AddedResult
    from vae_edge.kit.write import Kit

log = logging.getLogger(__name__)

MAX_KIT_IMAGES = 1000


# Engines


def build_engine(
    bundle: str | os.PathLike[str],
    config: BuildConfig | None = None,
    *,
    mark_outputs: bool | Sequence[str] = False,
    progress: Progress | None = None,
    notice: Notice | None = None,
    timeout_s: float | None = None,
    **options: Any,
) -> BundleEngine | BundleNetwork:
    """Build a TensorRT engine, or a network file, from a bundle's ONNX file, and add it to the bundle.

    Args:
        bundle: the bundle's folder.
        config: kind, precision, (min, opt, max) batch, targets, ... (`vae_edge.BuildConfig`).
        mark_outputs: make the tensors inside that the probes know outputs too, or those of these names.
        progress: called with (phase, step, steps).
        notice: called with lines for the user before the build is over: which layers a DLA would take.
        timeout_s: seconds after which the build is stopped.
        options: values of a `BuildConfig` by name, in place of `config` or of its values.

    Raises:
        ConfigError, BundleError: the bundle is damaged, or cannot be written; an option has no such name.
        EngineError: the bundle lacks the precision, or the engine cannot be built; the bundle is as it was.
    """
    from vae_edge.bundle import load_bundle
    from vae_edge.engine.build import build_bundle_engine, inner_tensor_names

    check_folder(bundle)
    chosen = _config(config, options)
    if chosen.kind == "native":
        from vae_edge.exporting.network_file import build_bundle_network

        return build_bundle_network(bundle, chosen.targets, chosen.precision, progress=progress)
    if chosen.kernels != "tensorrt":
        from vae_edge.exporting.plugin_engine import build_plugin_engine

        if mark_outputs:
            raise ConfigError("An engine with the toolkit's kernels has no tensors inside to mark: leave that out.")
        return build_plugin_engine(bundle, chosen, progress=progress, notice=notice, timeout_s=timeout_s)
    if mark_outputs is True:
        names = inner_tensor_names(load_bundle(bundle), chosen.role, chosen.precision)
        chosen = dataclasses.replace(chosen, mark_outputs=names)
    elif mark_outputs:
        chosen = dataclasses.replace(chosen, mark_outputs=tuple(mark_outputs))
    return build_bundle_engine(bundle, chosen, progress=progress, notice=notice, timeout_s=timeout_s)


def _config(config: BuildConfig | None, options: dict[str, Any]) -> BuildConfig:
    from vae_edge.engine.tensorrt import BuildConfig

    names = [field.name for field in dataclasses.fields(BuildConfig)]
    unknown = [name for name in options if name not in names]
    if unknown:
        raise ConfigError(f"A build has no option {unknown[0]!r}; it has {', '.join(names)}.")
    if config is None and "precision" not in options:
        raise ConfigError('A build needs to know the precision, such as precision="int8".')
    return BuildConfig(**options) if config is None else dataclasses.replace(config, **options)


# Devices at which TensorRT must build itself


@dataclass(frozen=True)
class BuildPlan:
    """Where the engines for some targets are built.

    Attributes:
        here: architectures to build for on this machine; empty for its own GPU.
        on_device: devices on which TensorRT must build, each of which gets a kit.
    """

    here: tuple[str, ...]
    on_device: tuple[TargetDevice, ...]

    @property
    def builds_here(self) -> bool:
        """Whether anything is to be built on this machine."""
        return bool(self.here) or not self.on_device


def plan_build(targets: Targets, kind: str = "auto", device: int = 0) -> BuildPlan:
    """Divide what `--target` named into what this machine can build and devices that need a kit.

    Only devices by name get a kit: an architecture is built here, or refused with what to do instead.

    Args:
        targets: what was named.
        kind: of TensorRT, of which TensorRT-RTX builds nothing on the device; or "native", which is always built here.
        device: number of this machine's GPU, for which full TensorRT builds here.
    """
    from vae_edge.engine import gpus

    if kind in ("tensorrt_rtx", "native"):
        return BuildPlan(targets.architectures, ())
    gpu = gpus.probe().device(device)
    local = "" if gpu is None else gpu.target
    on_device = tuple(each for each in targets.devices if not each.ahead_of_time and each.target != local)
    remote = {each.target for each in on_device}
    return BuildPlan(tuple(name for name in targets.architectures if name not in remote), on_device)


def add_network_files(
    bundle: str | os.PathLike[str],
    device: TargetDevice,
    precisions: Sequence[str],
    progress: Progress | None = None,
) -> list[BundleNetwork]:
    """Add the network files that can be made here for a device, so that they travel in its kit.

    One that is there already, of the same ONNX file, stays. A precision that has none, or what does not succeed, is
    told by the log and left out: the kit builds without it.
    """
    made: list[BundleNetwork] = []
    for precision in precisions:
        if precision not in ("fp16", "int8") or device.capability < (8, 0) or _has_network(bundle, precision, device):
            continue
        try:
            from vae_edge.exporting.network_file import build_bundle_network

            made.append(build_bundle_network(bundle, (device.target,), precision, progress=progress))
        except (ImportError, VaeEdgeError) as error:
            log.warning("the kit has no %s network file for %s: %s", precision, device.target, error)
    return made


def _has_network(bundle: str | os.PathLike[str], precision: str, device: TargetDevice) -> bool:
    from vae_edge.bundle import load_bundle
    from vae_edge.runtime.probing import source_sha256

    opened = load_bundle(bundle)
    sources = {entry.sha256 for entry in opened.select("classifier", "onnx", target="any")}
    there = opened.select("classifier", "native", precision, device.target)
    return any(source_sha256(entry) in sources for entry in there)


def write_kit(
    bundle: str | os.PathLike[str],
    device: str,
    precisions: Sequence[str],
    out: str | os.PathLike[str] | None = None,
    *,
    data: str | os.PathLike[str] | Dataset | None = None,
    group_by: str | None = None,
    val: str | os.PathLike[str] | None = None,
    mark_outputs: bool = False,
    **options: Any,
) -> Kit:
    """Write a kit: all that a device needs to build, verify and measure engines of a bundle with its own TensorRT.

    Args:
        bundle: the bundle's folder.
        device: a name that `vae-edge devices` lists, or an architecture.
        precisions: of the bundle's ONNX models, an engine for each.
        out: a folder, or a file that ends in .tar.gz; it is replaced if it is a kit. None is a file beside the bundle.
        data: labelled images; up to 1,000 of them that were held out travel with the kit, and the engine's accuracy
            is measured on them.
        group_by, val: which images were held out, as `vae_edge.evaluate`.
        mark_outputs: as `build_engine`.
        options: values of a `BuildConfig` by name.

    Raises:
        ConfigError: an option has no such name, or `out` is something else than a kit.
        BundleError: the bundle is damaged.
        EngineError: the device is unknown, or it cannot run such an engine.
        DataError: the images are not the model's kind.
    """
    from vae_edge.bundle import load_bundle
    from vae_edge.engine.build import inner_tensor_names
    from vae_edge.kit.write import kit_device, write

    opened = load_bundle(bundle)
    target = kit_device(device)
    configs = []
    for precision in precisions:
        config = _config(None, {**options, "precision": precision, "targets": (), "kind": "tensorrt"})
        names = inner_tensor_names(opened, config.role, precision) if mark_outputs else config.mark_outputs
        configs.append(dataclasses.replace(config, mark_outputs=names))
    held_out = None if data is None else _held_out(opened, data, group_by, val)
    place = out if out is not None else default_kit(bundle, target)
    return write(opened, target, configs, place, held_out)


def default_kit(bundle: str | os.PathLike[str], device: TargetDevice) -> Path:
    """Where a kit is written if nothing else is said: beside the bundle."""
    folder = Path(bundle).resolve()
    return folder.with_name(f"{folder.name}-{device.name}.tar.gz")


def _held_out(
    bundle: Bundle,
    data: str | os.PathLike[str] | Dataset,
    group_by: str | None,
    val: str | os.PathLike[str] | None,
) -> HeldOut:
    """Up to `MAX_KIT_IMAGES` held-out images, rotated as training's were."""
    from vae_edge.data import rotation_range
    from vae_edge.data.load import open_data
    from vae_edge.data.splits import align_classes, resolve_split, select_trained_split
    from vae_edge.data.transforms import rotate_dataset
    from vae_edge.kit.description import HeldOut

    about = {"holdout_fraction": 0.1, "seed": 0, "fingerprint": None, **bundle.manifest["data"]}
    dataset = open_data(data, prepared_as=bundle.input, group_by=group_by, val=val)
    split = resolve_split("auto", dataset, about["fingerprint"], bundle.path)
    images = align_classes(select_trained_split(dataset, split, about), bundle.classes)
    chosen = np.random.default_rng(about["seed"]).permutation(len(images))[:MAX_KIT_IMAGES]
    images = images.take(np.sort(chosen)).in_memory()
    range_deg = rotation_range(str(bundle.rotation))
    if range_deg and images.angles_deg is None:
        images = rotate_dataset(images, range_deg, about["seed"] + 1, bundle.input.fill)
    return HeldOut(images.images, images.labels, images.angles_deg, dataset.name, split)


def add_result(result: str | os.PathLike[str], bundle: str | os.PathLike[str]) -> AddedResult:
    """Add the engines of a kit's result, with what was measured on the device, to the bundle that the kit was made of.

    Args:
        result: the file that the kit wrote on the device.
        bundle: the bundle's folder.

    Raises:
        ConfigError, BundleError: the bundle is damaged, or cannot be written; the result is damaged, of another
            bundle, or its engines gave wrong answers. The bundle is as it was.
    """
    from vae_edge.kit.result import add

    check_folder(bundle)
    return add(result, bundle)
