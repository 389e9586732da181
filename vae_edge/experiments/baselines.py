"""Baselines: what a user would take instead of our model, how they are trained, what they cost, their ONNX files.

The networks (a perceptron, two plain CNNs) are trained by our recipe: AdamW on a one-cycle learning rate, an
exponential moving average of the weights, the same batches, augmentation and precision. scikit-learn's two models (a
support vector machine, logistic regression) see each image once, without augmentation.

All models become ONNX graphs of one kind, uint8 images to one number for each class, so that they are timed alike.

The cost of a network is counted, not timed: parameters and multiply-accumulates (MACs), in inference and training.
`torch.utils.flop_counter` counts convolutions and matrix products, two operations for each multiply-accumulate. Left
out is what has no weights of its own: activations, normalization (which folds into the convolution before it),
resampling (a few thousand operations for 28×28 pixels), softmax.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vae_edge.data import LabelledImages
from vae_edge.errors import CheckpointError
from vae_edge.exporting.onnx_file import OPSET, ClassifierGraph, set_metadata, strip, suppress_logs, to_onnx, to_pixels
from vae_edge.model import AngleVAE, LossWeights, ModelConfig, compute_losses
from vae_edge.model.network import Backbone
from vae_edge.spec import Size, height_and_width
from vae_edge.training.augment import augment
from vae_edge.training.config import TrainConfig, warmup_cosine_lr
from vae_edge.training.data import to_float
from vae_edge.training.trainer import Progress, fast_bf16

MLP_HIDDEN = 256
CNN_WIDTHS = (16, 32, 48)
WIDTH_STEP = 8  # channel counts are multiples of this, which suits SIMD registers
MIN_HIDDEN = 32
SVM_C = 10.0
LOGISTIC_C = 0.1
LOGISTIC_ITERATIONS = 300
PREDICT_BATCH = 500
PROBABILITIES = "probabilities"  # the ONNX output
METADATA = {"role": "comparison"}  # of the ONNX files

# ------------------------------------------------------------------------------------------------------ networks


class PlainBackbone(Backbone):
    """Our encoder's backbone without its feature output: image [N, C, H, W] to features [N, F]."""

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        """Features [N, F]."""
        return super().forward(image)[0]


def mlp(config: ModelConfig) -> nn.Sequential:
    """Pixels, 256 hidden units, classes."""
    pixels = config.channels * config.height * config.width
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, MLP_HIDDEN), nn.ReLU(inplace=True), nn.Linear(MLP_HIDDEN, config.classes)
    )


def cnn(config: ModelConfig) -> nn.Sequential:
    """A small plain CNN: 77k parameters for 28×28 grey pixels and ten classes."""
    features = _features(CNN_WIDTHS, config)
    return nn.Sequential(_backbone(CNN_WIDTHS, config), nn.Linear(features, config.classes))


def cnn_of_size(config: ModelConfig, parameters: int) -> nn.Sequential:
    """A plain CNN with a given number of parameters.

    Its three widths are in the ratio 1:2:3, and the largest that leave at least 32 units for a hidden layer before the
    classes. The hidden layer takes the parameters that are left, so the number is met to within half a unit.
    """
    best = _widths_and_hidden(config, 1, parameters)
    step = 2
    while (wider := _widths_and_hidden(config, step, parameters))[1] >= MIN_HIDDEN:
        best, step = wider, step + 1
    widths, hidden = best
    return nn.Sequential(
        _backbone(widths, config),
        nn.Linear(_features(widths, config), max(1, hidden)),
        nn.ReLU(inplace=True),
        nn.Linear(max(1, hidden), config.classes),
    )


def equal_compute_steps(steps: int, macs: float, baseline_macs: float) -> int:
    """Steps of a baseline that cost as many multiply-accumulates as `steps` of our model.

    Args:
        macs: of training our model on one image; `baseline_macs`: of training the baseline on one.
    """
    return max(1, round(steps * macs / baseline_macs))


def _backbone(widths: tuple[int, ...], config: ModelConfig) -> PlainBackbone:
    """Image [N, C, H, W] to features [N, widths[-1] · h · w], where h and w are the last resolution."""
    return PlainBackbone(config, widths)


def _widths_and_hidden(config: ModelConfig, step: int, parameters: int) -> tuple[tuple[int, ...], int]:
    """Widths of 8 · `step` · (1, 2, 3), and the hidden units that bring the network nearest to `parameters`."""
    widths = tuple(WIDTH_STEP * step * k for k in (1, 2, 3))
    convolutions = sum(p.numel() for p in _backbone(widths, config).parameters())
    left = parameters - convolutions - config.classes
    return widths, round(left / (_features(widths, config) + 1 + config.classes))


def _features(widths: tuple[int, ...], config: ModelConfig) -> int:
    """The number of features that the backbone gives."""
    return config.features(widths)


# ------------------------------------------------------------------------------------------------------ training


def training_device() -> torch.device:
    """The GPU if there is one, as in our own training."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fit_network(
    network: nn.Module,
    images: LabelledImages,
    settings: TrainConfig,
    steps: int,
    fill: float,
    progress: Progress | None = None,
) -> nn.Module:
    """Train a network from images float32 [N, C, H, W] to logits [N, K] by our own recipe, for a number of steps.

    The loop is not the trainer's: it has no VAE loss, no pseudo-labels, no other processes and no state on disk. Its
    random numbers are its own, so that records of earlier versions stay comparable.

    Args:
        network: trained in place. The caller seeds its first weights.
        images: a step takes `settings.batch_for(len(images))` of them.
        settings: the augmentation, the learning rate, the EMA and the seed are used.
        fill: the value of pixels from outside the frame, 0 to 1.
        progress: called after each step with (step, steps, {"total": loss}).

    Returns:
        the moving average of the weights, on the CPU and in evaluation mode.

    Raises:
        CheckpointError: if the gradient is not finite.
    """
    device = training_device()
    for parameter in network.to(device).parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    ema_network = copy.deepcopy(network).requires_grad_(False)
    optimizer = _adamw(network, settings)
    bf16 = settings.bf16 if settings.bf16 is not None else fast_bf16(device)

    batch = settings.batch_for(len(images))
    steps_per_epoch = len(images) // batch
    pixels, labels = torch.from_numpy(images.images).to(device), torch.from_numpy(images.labels).to(device)
    augmentation = settings.augmentation(len(images), channels=images.images.shape[-1])

    order = np.empty(0, np.int64)
    network.train()
    for step in range(steps):
        epoch, index = divmod(step, steps_per_epoch)
        if index == 0:
            order = np.random.default_rng([settings.seed, epoch]).permutation(len(images))
        rows = torch.from_numpy(order[index * batch : (index + 1) * batch]).to(device)
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        inputs = pixels[rows].permute(0, 3, 1, 2).float().div_(255.0)
        inputs, _ = augment(inputs, augmentation, generator, fill=fill)

        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = network(inputs.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=settings.weights.smoothing)

        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine_lr(step, steps, settings.learning_rate, settings.warmup)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), settings.gradient_clip)
        if not math.isfinite(float(norm)):
            raise CheckpointError(f"training diverged at step {step} of {steps}: the gradient is not finite")
        optimizer.step()
        update_ema(ema_network, network, min(settings.ema, (2 + step) / (11 + step)))

        if progress is not None:
            progress(step + 1, steps, {"total": float(loss.detach())})
    return ema_network.cpu().eval()


def _adamw(network: nn.Module, settings: TrainConfig) -> torch.optim.AdamW:
    """AdamW as our trainer has it: weight decay for matrices and filters, none for biases and normalization."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.99))


@torch.no_grad()
def update_ema(ema_network: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the average towards the network: the weights, and the running statistics of the normalization."""
    for average, current in zip(ema_network.state_dict().values(), network.state_dict().values(), strict=True):
        if average.is_floating_point():
            average.lerp_(current, 1.0 - decay)


@torch.no_grad()
def network_probabilities(network: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probabilities [N, K] of images uint8 [N, S, S, C]; the network is put into evaluation mode."""
    network.eval()
    starts = range(0, len(images), PREDICT_BATCH)
    parts = [network(to_float(images[i : i + PREDICT_BATCH])).softmax(1) for i in starts]
    return torch.cat(parts).numpy()


# -------------------------------------------------------------------------------------------------- scikit-learn


def flatten(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images uint8 [N, S, S, C] to float32 [N, S·S·C] in [0, 1]: what scikit-learn's models take."""
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255.0)


def import_estimators() -> None:
    """Import scikit-learn now, so that its import is not timed as training."""
    import sklearn.linear_model
    import sklearn.svm  # noqa: F401


def fit_svm(images: LabelledImages) -> Any:
    """scikit-learn's support vector machine: radial kernel, C = 10, gamma by the pixels' variance ("scale").

    The class is that of the highest one-against-rest score, so that a file with these scores gives the same classes.
    """
    from sklearn.svm import SVC

    return SVC(C=SVM_C, gamma="scale", break_ties=True).fit(flatten(images.images), images.labels)


def fit_logistic(images: LabelledImages) -> Any:
    """scikit-learn's multinomial logistic regression: C = 0.1, L-BFGS, at most 300 iterations."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 300 iterations are part of the definition
        regression = LogisticRegression(C=LOGISTIC_C, max_iter=LOGISTIC_ITERATIONS)
        return regression.fit(flatten(images.images), images.labels)


def estimator_cost(estimator: Any) -> tuple[int, int]:
    """Parameters, and multiply-accumulates for one image, of what `fit_svm` and `fit_logistic` return.

    A support vector costs one product over all pixels, and its weights in the scores of the classes.
    """
    if hasattr(estimator, "support_vectors_"):
        vectors, pixels = estimator.support_vectors_.shape
        products = vectors * pixels + estimator.dual_coef_.size
        return products + estimator.intercept_.size, products
    return estimator.coef_.size + estimator.intercept_.size, estimator.coef_.size


# ---------------------------------------------------------------------------------------------------------- ONNX


class DecisionGraph(nn.Module):
    """`image` uint8 [N, S, S, C] to `probabilities` [N, K] and nothing else, of our model or of a baseline network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities [N, K]."""
        pixels = to_pixels(image)
        if isinstance(self.network, AngleVAE):
            return self.network.probabilities(self.network(pixels).logits)
        return self.network(pixels).softmax(1)


def onnx_files(model: Any, size: Size, channels: int) -> dict[str, bytes]:
    """The ONNX files of a trained model: `decision` has one output for each class; our model's `full` has all outputs.

    Raises:
        ExportError: if the exporter fails.
    """
    if not isinstance(model, nn.Module):
        return {"decision": estimator_onnx(model, size, channels, METADATA).SerializeToString()}
    decision = to_onnx(DecisionGraph(model), size, channels, (PROBABILITIES,), METADATA)
    files = {"decision": decision.SerializeToString()}
    if isinstance(model, AngleVAE):
        graph = ClassifierGraph(model)
        files["full"] = to_onnx(graph, size, channels, graph.outputs, METADATA).SerializeToString()
    return files


def estimator_onnx(estimator: Any, size: Size, channels: int, metadata: Mapping[str, Any]) -> onnx.ModelProto:
    """A scikit-learn classifier as a graph from uint8 images, by skl2onnx with a cast and a scaling before it.

    The output `probabilities` has one number for each class that the estimator was trained on: a probability, or the
    decision function of an estimator without probabilities.
    """
    from skl2onnx import to_onnx as convert

    height, width = height_and_width(size)
    pixels = channels * height * width
    example = np.zeros((1, pixels), np.float32)
    options = {"zipmap": False, "raw_scores": not hasattr(estimator, "predict_proba")}
    with suppress_logs("skl2onnx"):
        model = convert(estimator, example, options={id(estimator): options}, target_opset=OPSET)

    graph = model.graph
    inner, scores = graph.input[0].name, graph.output[1].name
    graph.initializer.append(numpy_helper.from_array(np.array([0, pixels], np.int64), "row_of_pixels"))
    graph.initializer.append(numpy_helper.from_array(np.array(1 / 255, np.float32), "white"))
    first = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "row_of_pixels"], ["row"]),
        helper.make_node("Mul", ["row", "white"], [inner]),
    ]
    last = [helper.make_node("Identity", [scores], [PROBABILITIES])] if scores != PROBABILITIES else []
    nodes = [*first, *graph.node, *last]

    del graph.node[:], graph.input[:], graph.output[:]
    classes = len(estimator.classes_)
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", height, width, channels]))
    graph.output.append(helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["batch", classes]))
    strip(model)
    set_metadata(model, {**metadata, "labels": [int(label) for label in estimator.classes_]})
    onnx.checker.check_model(model, full_check=True)
    return model


COUNTED_BATCH = 4  # images in the training step that is counted


@dataclass(frozen=True)
class Cost:
    """Parameters that the output depends on, and multiply-accumulates for one image."""

    parameters: int
    macs: int


def inference_cost(network: nn.Module, image: Tensor) -> Cost:
    """The cost of `network` for one image, given as a batch of one, with the dtype and shape that the network takes.

    The network is traced, and what its output does not depend on is removed: a decoder behind a reconstruction that is
    not among the outputs costs nothing.
    """
    traced = copy.deepcopy(network).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.export warns of its own future
        program = torch.export.export(traced, (image,)).run_decompositions({})
    program.graph.eliminate_dead_code()

    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    names = {name for node, name in program.graph_signature.inputs_to_parameters.items() if node in used}
    parameters = sum(parameter.numel() for name, parameter in traced.named_parameters() if name in names)

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        program.module()(image)
    return Cost(parameters, counter.get_total_flops() // 2)


def training_macs(network: nn.Module, loss: Callable[[nn.Module, Tensor], Tensor], size: Size, channels: int) -> float:
    """Multiply-accumulates of a training step for one image: forward pass, and backward pass to all weights.

    Args:
        network: copied, so that the running statistics of its normalization stay as they are.
        loss: the scalar loss of the network on images float32 [N, C, H, W]: `vae_loss` or `cross_entropy_loss`.
        size: of the images.
        channels: of the images, C.
    """
    images = torch.zeros(COUNTED_BATCH, channels, *height_and_width(size))
    trained = copy.deepcopy(network).train()
    with FlopCounterMode(display=False) as counter:
        loss(trained, images).backward()
    return counter.get_total_flops() / 2 / COUNTED_BATCH


def cross_entropy_loss(network: nn.Module, images: Tensor) -> Tensor:
    """A baseline's loss on images [N, C, H, W], all labelled as class 0: the cost does not depend on the labels."""
    return F.cross_entropy(network(images), torch.zeros(len(images), dtype=torch.long, device=images.device))


def vae_loss(model: nn.Module, images: Tensor) -> Tensor:
    """The loss of our model on images [N, C, H, W], all labelled as class 0 and upright."""
    assert isinstance(model, AngleVAE)
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    angles = torch.zeros(len(images), device=images.device) if model.config.orientation else None
    return compute_losses(model.forward_train(images, labels, 0, 0), labels, angles, LossWeights())["total"]


def loss_of(network: nn.Module) -> Callable[[nn.Module, Tensor], Tensor]:
    """The loss that a network is trained by."""
    return vae_loss if isinstance(network, AngleVAE) else cross_entropy_loss


class LogitsOnly(nn.Module):
    """The part of our model that the class depends on: images float32 [N, C, H, W] to logits [N, K]."""

    def __init__(self, model: AngleVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, K]."""
        return self.model(image).logits
