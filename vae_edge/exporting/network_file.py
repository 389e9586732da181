"""A network file into a bundle, made from the bundle's own ONNX file on any machine: no GPU and no training run.

The native library runs such a file (`vae_edge.runtime.native`); for a Jetson it is the only engine that can be built
elsewhere. Weights, scales and constants are read out of the ONNX file into the layout of the kernels, and the CPU
reference of the kernels answers the bundle's probe images on them: a network whose answers are wrong is not added. Then
Triton compiles the network for the targets. Not verified on hardware.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from vae_edge_kernels import aot

from vae_edge import __version__
from vae_edge.bundle import Bundle, ModelEntry, add_models, load_bundle
from vae_edge.engine import gpus
from vae_edge.engine.devices import find_architectures
from vae_edge.errors import ConfigError, EngineError, ExportError, KernelError
from vae_edge.exporting.bundle import load_onnx
from vae_edge.exporting.onnx_file import METADATA_PREFIX, get_metadata, to_fp16
from vae_edge.exporting.probes import expect
from vae_edge.exporting.quantize import LAYER_OPS, PREFIX, read_qdq_layers
from vae_edge.files import sha256
from vae_edge.model.config import ModelConfig
from vae_edge.model.network import current_name
from vae_edge.ops.network import FusedModel
from vae_edge.ops.packing import LayerParams, NetworkConstants, PackedNetwork, config_layout, pack_layers
from vae_edge.preprocess import InputSpec
from vae_edge.probes import Expected, Probes, compare, without_outliers
from vae_edge.probes import load as load_probes
from vae_edge.probes import save as save_probes
from vae_edge.spec import CLASSIFIER_OUTPUTS, UNCERTAINTY_OUTPUTS

PRECISIONS = ("fp16", "int8")
_SOURCES = {"fp16": ("fp16", "fp32"), "int8": ("int8",)}
"""Precisions of the ONNX files that a network file of a precision is made from, the first one that is there."""
NO_CAP = torch.full((1, 1), torch.inf)
_BATCH = 32  # images that the CPU reference answers at a time

Progress = Callable[[str, int, int], None]


# ---- Into a bundle --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BundleNetwork:
    """A network file that was added to a bundle.

    Attributes:
        bundle: the bundle's folder.
        file: the network file in it.
        precision, target: as in the manifest.
        onnx: the ONNX file that it was made from.
        bytes: of the file.
        seconds: that it took.
        differences: how far the CPU reference's answers to the probe images lie from the exact ones, by output: `mean`,
            `largest` and how much is allowed of each.
        versions: of what made it.
    """

    bundle: Path
    file: str
    precision: str
    target: str
    onnx: str
    bytes: int
    seconds: float
    differences: Mapping[str, Mapping[str, float]]
    versions: Mapping[str, str]

    def summary(self) -> str:
        """What was made, in a sentence or two."""
        return (
            f"Triton {self.versions['triton']} compiled {self.onnx} for {self.target} in {self.seconds:.1f} s "
            f"({self.precision} network file, {self.bytes / 1024:.0f} KiB). The CPU reference answers the probe images "
            "right with its weights; the machine code is checked on the device, at the first load."
        )

    def to_json(self) -> dict[str, Any]:
        """As `vae-edge build` prints it."""
        return {"summary": self.summary(), "kind": "native", **dataclasses.asdict(self), "bundle": str(self.bundle)}


def default_precision(bundle: Bundle) -> str:
    """The precision of a network file where none is asked for: int8 if the bundle has an int8 ONNX file, else fp16."""
    return "int8" if bundle.select("classifier", "onnx", "int8", "any") else "fp16"


def build_bundle_network(
    bundle_path: str | os.PathLike[str],
    targets: Sequence[str],
    precision: str | None = None,
    *,
    ctas_per_image: int = 1,
    progress: Progress | None = None,
) -> BundleNetwork:
    """Make a network file from a bundle's ONNX classifier, and add it to the bundle.

    The bundle changes only once the file is complete. The file's accuracy stays empty, since it was not measured on the
    device; that of the ONNX file is in the provenance.

    Args:
        targets: architectures or devices, as `vae_edge.engine.devices` reads them; empty for this machine's GPU.
        precision: fp16 or int8; None is `default_precision`.
        ctas_per_image: programs that work on a single image; see `vae_edge_kernels.aot.network_file`.
        progress: called with (phase, steps done, steps in all).

    Raises:
        BundleError: the bundle is damaged or cannot be written.
        EngineError: the bundle has no such ONNX file or no answers to compare with, the answers are wrong, the
            network does not compile, or its encoder is a pretrained network.
    """
    start = time.monotonic()
    bundle = load_bundle(bundle_path)
    precision = default_precision(bundle) if precision is None else precision
    names = check_targets(targets)
    source = find_source(bundle, precision)

    def show(phase: str, step: int) -> None:
        if progress is not None:
            progress(phase, step, 2 + len(names))

    try:
        checked = read_checked(bundle, precision, ctas_per_image, show)
        fused, differences = checked.fused, checked.differences
        show(f"compiling for {', '.join(names)}", 2)
        done = iter(range(3, 3 + len(names)))
        with tempfile.TemporaryDirectory(prefix="vae-edge-") as folder:
            file = Path(folder) / "network.ve"
            fused.save(
                file,
                bundle.classes,
                bundle.threshold_of(source),
                [int(name.removeprefix("sm_")) for name in names],
                progress=lambda line: show(line, next(done)),
            )
            seconds, versions = time.monotonic() - start, _versions()
            entry = ModelEntry(
                role="classifier",
                precision=precision,
                format="native",
                target=gpus.target_name(names),
                threshold=bundle.threshold_of(source),
                provenance={
                    "built": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                    "versions": versions,
                    "settings": {"precision": precision, "targets": list(names), "ctas_per_image": ctas_per_image},
                    "seconds": round(seconds, 3),
                    "onnx": {"file": source.file, "sha256": source.sha256, "accuracy": dict(source.accuracy)},
                    "reference_differences": differences,
                },
            )
            size = file.stat().st_size
            added = add_models(bundle_path, [(file, entry)], checked.save_probes(Path(folder), file))
    except KernelError as error:
        raise EngineError(f"No network file can be made of {bundle.file(source)}: {error}") from error
    except ExportError as error:
        raise EngineError(f"{bundle.file(source)} is not a network of ours ({error}): export it again.") from error
    except OSError as error:
        raise EngineError(
            f"The network file cannot be written to {tempfile.gettempdir()} ({error.strerror}): free some space there, "
            "or name another folder in TMPDIR. The bundle is as it was."
        ) from error
    name = added.find("classifier", "native", precision, entry.target).file
    return BundleNetwork(
        bundle.path, name, precision, entry.target, source.file, size, round(seconds, 3), differences, versions
    )


@dataclass(frozen=True)
class CheckedNetwork:
    """A bundle's network for the kernels, whose answers to the probe images were found right.

    Attributes:
        bundle: that it is of.
        precision: fp16 or int8.
        source: the ONNX file that it was read from.
        model: its content.
        packed: the network's weights and constants.
        fused: the network.
        probes: of the bundle.
        answers: the exact ones to the probe images, and what is allowed.
        differences: of the CPU reference's answers, as of `BundleNetwork`.
    """

    bundle: Bundle
    precision: str
    source: ModelEntry
    model: onnx.ModelProto
    packed: PackedNetwork
    fused: FusedModel
    probes: Probes
    answers: Expected
    differences: dict[str, dict[str, float]]

    def save_probes(self, folder: Path, file: Path) -> Path | None:
        """Write a file of probe images that knows a new model, where the ONNX file's answers are not the model's."""
        if self.precision == self.source.precision:
            return None
        path, digests = folder / "probes.npz", {entry.sha256 for entry in self.bundle.models}
        known = {digest: self.probes.models[digest] for digest in self.probes.models if digest in digests}
        save_probes(path, Probes(self.probes.images, {**known, sha256(file): self.answers}))
        return path


def read_checked(
    bundle: Bundle, precision: str, ctas_per_image: int = 1, show: Callable[[str, int], None] = lambda phase, step: None
) -> CheckedNetwork:
    """Read a bundle's network of a precision, and compare the CPU reference's answers to the probe images.

    Args:
        ctas_per_image: programs that work on a single image.
        show: called with (phase, steps done), of two.

    Raises:
        BundleError: the bundle is damaged.
        EngineError: it has no such ONNX file or no answers to compare with, or the answers are wrong, or its encoder is
            a pretrained network.
        ExportError: the ONNX file is no network of ours.
        KernelError: its weights do not fit.
    """
    source = find_source(bundle, precision)
    probes = _probes(bundle, source)
    show(f"reading {source.file}", 0)
    model = load_source(bundle, source)
    packed = read_network(model, bundle.input)
    fused = FusedModel(packed, ctas_per_image)
    show("answering the probe images", 1)
    answers = exact_answers(model, source, precision, probes)
    differences = check_answers(fused, probes.images, answers, source.file)
    return CheckedNetwork(bundle, precision, source, model, packed, fused, probes, answers, differences)


def check_targets(targets: Sequence[str], what: str = "network file") -> tuple[str, ...]:
    """The architectures to compile for, each of which the kernels' compiler knows; this machine's GPU if none is named.

    Raises:
        EngineError: a target is unknown, or none is named and there is no GPU; `what` could not be made.
    """
    names = find_architectures(targets)
    if not names:
        driver = gpus.probe()
        if not driver.devices:
            raise EngineError(
                f"A {what} needs to be told its targets, since this machine has no GPU ({driver.problem}): name "
                f"one or more of {_known()}."
            )
        names = (driver.devices[0].target,)
    for name in names:
        if int(name.removeprefix("sm_")) not in aot.ARCHITECTURES:
            raise EngineError(f"No {what} can be made for {name} ({gpus.DEVICES[name]}): choose of {_known()}.")
    return names


def _known() -> str:
    architectures = ", ".join(f"sm_{number} ({where})" for number, where in aot.ARCHITECTURES.items())
    return f"{architectures}, or a device that `vae-edge devices` lists"


def find_source(bundle: Bundle, precision: str, made: str = "network file") -> ModelEntry:
    """The ONNX file that a network file, or what `made` names, of a precision is made from.

    Raises:
        EngineError: an unknown precision, or the bundle has no such file.
    """
    if precision not in PRECISIONS:
        raise EngineError(f"A {made} is {' or '.join(PRECISIONS)}, not {precision}: choose one of these.")
    for source in _SOURCES[precision]:
        found = bundle.select("classifier", "onnx", source, "any")
        if found:
            return found[0]
    has = ", ".join(entry.precision for entry in bundle.select("classifier", "onnx", target="any")) or "none"
    raise EngineError(
        f"The bundle {bundle.path} has no {precision} ONNX classifier to make a {made} of (it has: {has}): add "
        f"it with `vae-edge quantize {bundle.path} --precision {precision} --data PATH`."
    )


def load_source(bundle: Bundle, source: ModelEntry) -> onnx.ModelProto:
    """The ONNX file, checked by its SHA-256.

    Raises:
        BundleError: it is not the file of the manifest.
        EngineError: its encoder is a pretrained network, for which there are no kernels.
    """
    model = load_onnx(bundle.file(source), source.sha256)
    if any(entry.key == f"{METADATA_PREFIX}backbone" for entry in model.metadata_props):
        backbone = get_metadata(model, source.file)["backbone"]
        raise EngineError(
            f"The encoder of {bundle.path} is the pretrained network {backbone}, for which there are no kernels of "
            "ours: build an engine with TensorRT or TensorRT-RTX instead, or run the bundle with onnxruntime or "
            "openvino."
        )
    return model


def exact_answers(model: onnx.ModelProto, source: ModelEntry, precision: str, probes: Probes) -> Expected:
    """The answers to the probe images with which a network of a precision, made of a file, is compared."""
    if precision != source.precision:  # of the fp16 file that is not there; fp32's allow less
        return expect(to_fp16(model), precision, probes.images)
    return probes.models[source.sha256]


def _probes(bundle: Bundle, source: ModelEntry) -> Probes:
    """The bundle's probe images, with the exact answers of an ONNX file among others."""
    probes = None if bundle.probes is None else load_probes(bundle.file(bundle.probes))
    if probes is None or source.sha256 not in probes.models:
        what = "no probe images" if probes is None else f"no exact answers of {source.file} to its probe images"
        raise EngineError(
            f"The bundle {bundle.path} has {what}, and a network that nothing proves is not added: "
            f"`vae-edge quantize {bundle.path} --precision int8 --data PATH` adds them."
        )
    return probes


def _versions() -> dict[str, str]:
    return {
        "vae_edge": __version__,
        "triton": metadata.version("triton"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


# ---- Answers --------------------------------------------------------------------------------------------------------


def check_answers(
    fused: FusedModel, images: NDArray[np.uint8], answers: Expected, source: str
) -> dict[str, dict[str, float]]:
    """Compare the CPU reference's answers to the probe images [P, S, S, C] with the exact ones of an ONNX file.

    Returns:
        By output, how far they lie apart in the mean and at most, and what is allowed.

    Raises:
        EngineError: an output is further away than the probes allow.
    """
    return compare_answers(answer(fused, images), answers, f"The network read out of {source}", "added")


def compare_answers(
    outputs: Mapping[str, NDArray[np.float32]], answers: Expected, what: str, done: str
) -> dict[str, dict[str, float]]:
    """Compare outputs for the probe images with the exact ones; `what` gave them, and was not `done` if they are wrong.

    Returns and raises as `check_answers`.
    """
    wrong = compare(answers, outputs)
    if wrong:
        raise EngineError(
            f"{what} would give wrong answers: {wrong[0].sentence()}. Nothing was {done}: "
            "export and quantize the bundle again, or choose another precision."
        )
    found = {}
    for name, allowed in answers.tolerance.items():
        apart, _ = without_outliers(name, outputs[name], answers.outputs[name])
        found[name] = {
            "mean": float(apart.mean()) if len(apart) else 0.0,
            "largest": float(apart.max(initial=0.0)),
            "allowed_mean": allowed.mean,
            "allowed_largest": allowed.largest,
        }
    return found


def answer(fused: FusedModel, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """The outputs of a fused network on the CPU for images [N, S, S, C], by name."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(images), _BATCH):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + _BATCH]))
            parts.append([output.numpy() for output in fused(batch)])
    probabilities, angle, score, uncertainty = (np.concatenate(part) for part in zip(*parts, strict=True))
    outputs = dict(zip(CLASSIFIER_OUTPUTS, (probabilities, angle, score), strict=True))
    if fused.layout.bins:
        outputs |= dict(zip(UNCERTAINTY_OUTPUTS, uncertainty.T, strict=True))
    return outputs


# ---- Reading a network out of an ONNX file --------------------------------------------------------------------------


def read_network(model: onnx.ModelProto, image: InputSpec) -> PackedNetwork:
    """The weights and constants of an exported classifier, packed for the kernels: int8 of a Q/DQ file, else float16.

    Layers and constants go by the names that export gave them, so this reads files of ours alone.

    Args:
        model: an fp32, fp16 or int8 classifier that `vae-edge export` or `vae-edge quantize` wrote.
        image: what its images are; the background says what lies outside a rotated image's frame.

    Raises:
        ExportError: a layer or a constant is missing, or has a shape that no network of ours has.
        KernelError: an int8 scale is not above 0.
    """
    constants = {constant.name: constant for constant in model.graph.initializer}
    int8 = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    layers = dict(read_qdq_layers(model).layers) if int8 else _float_layers(model, constants)
    stored = _read_constants(model, constants)
    config, decoder = _config(layers, image, _stem_halvings(model, layers, image))
    layout = config_layout(
        config,
        components=stored.nearest.shape[0],
        clusters=stored.nearest.shape[1],
        decoder=decoder,
        int8=int8,
    )
    _check_shapes(layers, stored, config, decoder is None)
    return pack_layers(layout, layers, stored)


def _float_layers(model: onnx.ModelProto, constants: Mapping[str, onnx.TensorProto]) -> dict[str, LayerParams]:
    """The layers of an fp32 or fp16 file, by the names of their modules."""
    layers = {}
    for node in model.graph.node:
        weight = node.input[1].removesuffix("_fp16") if node.op_type in LAYER_OPS else ""
        if not weight.endswith(".weight") or node.input[1] not in constants:
            continue
        values = _tensor(constants, node.input[1])
        bias = _tensor(constants, node.input[2]) if len(node.input) > 2 else torch.zeros(len(values))
        layers[current_name(weight.removeprefix(PREFIX)).removesuffix(".weight")] = LayerParams(values, bias)
    return layers


def _read_constants(model: onnx.ModelProto, constants: Mapping[str, onnx.TensorProto]) -> NetworkConstants:
    """The score's buffers by name; its terms' weights and the temperature from the nodes that compute the outputs."""
    producers = {name: node for node in model.graph.node for name in node.output}
    buffers = {current_name(name.removeprefix(PREFIX)): name for name in constants}

    def buffer(name: str) -> torch.Tensor:
        if name not in buffers:
            raise ExportError(f"it has no {name}")
        return _tensor(constants, buffers[name])

    def step(name: str, operator: str) -> onnx.NodeProto:
        node = producers.get(name)
        if node is None or node.op_type != operator:
            came = "nothing" if node is None else node.op_type
            raise ExportError(f"{name} should be computed by {operator}, and is by {came}")
        return node

    subtract = step("score", "Sub")
    weigh = step(step(subtract.input[0], "Squeeze").input[0], "MatMul")
    scaled = producers.get(step("probabilities", "Softmax").input[0])
    temperature = 1.0  # a model that was not calibrated divides by nothing
    if scaled is not None and scaled.op_type == "Div":
        temperature = float(_tensor(constants, scaled.input[1]))
    return NetworkConstants(
        projection=buffer("score.projection"),
        offset=buffer("score.offset"),
        # The fast score has no reconstruction error to cap.
        max_expected_error=buffer("score.max_expected_error") if "score.max_expected_error" in buffers else NO_CAP,
        nearest=buffer("score.nearest"),
        nearest_offset=buffer("score.nearest_offset"),
        cluster_offset=buffer("score.cluster_offset"),
        cluster_whitening=buffer("score.cluster_whitening").half(),
        weights=_tensor(constants, weigh.input[1]).reshape(-1),
        subtracted=float(_tensor(constants, subtract.input[1])),
        temperature=temperature,
    )


def _tensor(constants: Mapping[str, onnx.TensorProto], name: str) -> torch.Tensor:
    """A constant of the file as float32."""
    if name not in constants:
        raise ExportError(f"{name or 'a tensor'} is not a constant of it")
    return torch.tensor(numpy_helper.to_array(constants[name]).astype(np.float32))


def _stem_halvings(model: onnx.ModelProto, layers: Mapping[str, LayerParams], image: InputSpec) -> int:
    """How often the stem halves, by the strides of a backbone's first convolutions: one more halves in the trunk.

    A pooled encoder halves with all convolutions but perhaps the first. Without an orientation encoder it is then the
    pool that makes the decoder's target, or, without a decoder, where it does not matter, the size of the image.
    """
    pooled, rotated = "classifier" in layers, "orientation.angle_bins" in layers
    if pooled and not rotated:
        if "decoder.first" not in layers:
            return ModelConfig(size=image.size).halvings
        pools = [_pair(node, "kernel_shape")[0] for node in model.graph.node if node.op_type == "AveragePool"]
        return pools[0].bit_length() - 1 if pools else 0
    prefix = f"{PREFIX}orientation.backbone.layers." if pooled else f"{PREFIX}encoder.layers."
    backbone = [node for node in model.graph.node if node.op_type == "Conv" and node.input[1].startswith(prefix)]
    steep = list(itertools.takewhile(lambda node: _pair(node, "strides") == (2, 2), backbone))
    return max(0, len(steep) - 1)


def _pair(node: onnx.NodeProto, name: str) -> tuple[int, ...]:
    return next((tuple(attribute.ints) for attribute in node.attribute if attribute.name == name), (1, 1))


def _config(
    layers: Mapping[str, LayerParams], image: InputSpec, halvings: int
) -> tuple[ModelConfig, tuple[int, int, int] | None]:
    """The shape of the network from its layers' weights; the decoder as `make_layout` takes it, None without one."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in layers:
            raise ExportError(f"it has no layer {name}")
        return tuple(layers[name].weight.shape)

    rotated = "orientation.angle_bins" in layers
    unused = ModelConfig()  # shapes of an orientation encoder that is not there
    try:
        pooled = "classifier" in layers
        given = ModelConfig(size=image.size, stem_halvings=halvings)
        levels, stem = (None, 0) if pooled else (len(given.resolutions()), given.feature_layer() - 2)
        config = ModelConfig(
            "of a file",
            classes=shape("classifier" if pooled else "classifier.2")[0],
            size=image.size,
            channels=image.channels,
            orientation=rotated,
            orientation_widths=_widths(
                layers, "orientation.backbone.layers", len(given.resolutions()), given.feature_layer() - 2
            )
            or unused.orientation_widths,
            widths=_widths(layers, "encoder.layers", levels, stem),
            latent=shape("mu")[0],
            hidden=unused.hidden if pooled else shape("classifier.0")[0],
            angle_bins=shape("orientation.angle_bins")[0] if rotated else unused.angle_bins,
            fill=image.fill / 255,
            circular_mask=rotated and image.background == "none",
            head="pooled" if pooled else "code+pooled" if "second_classifier" in layers else "code",
            stem_halvings=halvings,
        )
    except ConfigError as error:
        raise ExportError(str(error)) from error
    if "decoder.first" not in layers:
        return config, None
    middle, width = shape("decoder.middle.0")[:2]
    block = max(1, round((shape("decoder.last")[0] // config.channels) ** 0.5))
    return config, (width, middle, block)


def _widths(layers: Mapping[str, LayerParams], prefix: str, levels: int | None, stem: int) -> tuple[int, ...]:
    """Channels of a backbone by level: two convolutions a level after the first, then one where the width stays.

    `stem` is how many convolutions come before those of the levels. `levels` is None where each has one convolution.
    """
    outputs: list[int] = []
    while f"{prefix}.{len(outputs)}.0" in layers:
        outputs.append(int(layers[f"{prefix}.{len(outputs)}.0"].weight.shape[0]))
    outputs = outputs[stem:]
    if levels is None:
        return tuple(outputs)
    count = len(outputs) - levels + 1  # of the widths
    return (outputs[0], *outputs[1 : 2 * count - 2 : 2]) if outputs else ()


def _check_shapes(
    layers: Mapping[str, LayerParams], constants: NetworkConstants, config: ModelConfig, fast: bool
) -> None:
    """Refuse a file whose tensors are not of the shapes that its configuration gives.

    The packed buffers are flat: a tensor of another shape would move everything behind it.
    """
    from vae_edge.model.network import AngleVAE

    model = AngleVAE(config).for_export()
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) and name != "logvar":
            if fast and name.startswith("decoder."):
                continue
            expected = tuple(module.weight.shape)
            found = layers.get(name)
            if found is None or tuple(found.weight.shape) != expected or tuple(found.bias.shape) != expected[:1]:
                came = "missing" if found is None else f"{list(found.weight.shape)} and {list(found.bias.shape)}"
                wanted = f"{list(expected)} with biases {list(expected[:1])}"
                raise ExportError(f"the layer {name} should be {wanted}, and is {came}")
    score = model.score
    components, clusters, terms = score.components, constants.nearest.shape[1], len(score.terms) - fast
    expected_shapes = {
        "projection": tuple(score.projection.shape),
        "offset": (components + 1,),
        "max_expected_error": (1, 1),
        "nearest": (components, clusters),
        "nearest_offset": (clusters,),
        "cluster_offset": (clusters, 1, components),
        "cluster_whitening": (clusters, components, components),
        "weights": (terms,),
    }
    for name, expected in expected_shapes.items():
        came_shape = tuple(getattr(constants, name).shape)
        if came_shape != expected:
            raise ExportError(f"the score's {name} should be {list(expected)}, and is {list(came_shape)}")
