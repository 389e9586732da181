"""What a user would use instead: a kernel machine, logistic regression, a perceptron, convolutional networks.

The networks are fitted as ours are: AdamW on one cycle, an average of the weights, the same batches, augmentation and
precision. The two from scikit-learn have no use for augmentation and see each image once.

What a network costs, counted and not timed: parameters and multiply-accumulates, at inference and in training.

Counted are convolutions and matrix products (`torch.utils.flop_counter`, two operations a multiply-accumulate).
Left out is what has no weights of its own: activations, normalization (which folds away), resampling (a few
thousand for 28×28 pixels), softmax.

Other models' way to ONNX, so that they are measured as ours is: bytes in, and one number for each class out.
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
from vae_edge.data.augment import affine_augment
from vae_edge.errors import CheckpointError
from vae_edge.export.onnx_file import OPSET, errors_only, set_metadata, strip, to_onnx, to_pixels
from vae_edge.model import AngleVAE, LossWeights, ModelConfig, compute_losses
from vae_edge.model.network import Backbone
from vae_edge.training.config import TrainConfig, warmup_cosine_lr
from vae_edge.training.data import to_float
from vae_edge.training.trainer import Progress, fast_bf16

MLP_HIDDEN = 256
CNN_WIDTHS = (16, 32, 48)
WIDTH_STEP = 8  # channel counts are multiples of this, which processors like
LEAST_HIDDEN = 32
SVM_C = 10.0
LOGISTIC_C = 0.1
LOGISTIC_ITERATIONS = 300
PREDICTED_AT_ONCE = 500


class PlainTrunk(Backbone):
    """A trunk whose tap nobody looks at: image to features [N, F]."""

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        """Image [N, channels, S, S] to features [N, F]."""
        return super().forward(image)[0]


def trunk(channels: int, widths: tuple[int, ...], sides: list[int]) -> PlainTrunk:
    """Image [N, channels, S, S] to features [N, widths[-1] · s · s] with s = sides[-1]."""
    return PlainTrunk(channels, widths, sides)


def mlp(config: ModelConfig) -> nn.Sequential:
    """Pixels, 256 hidden units, classes."""
    pixels = config.channels * config.size**2
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, MLP_HIDDEN), nn.ReLU(inplace=True), nn.Linear(MLP_HIDDEN, config.classes)
    )


def cnn(config: ModelConfig) -> nn.Sequential:
    """A plain small convolutional network, 77k parameters for 28×28 grey pixels and ten classes."""
    features = _features(CNN_WIDTHS, config)
    return nn.Sequential(trunk(config.channels, CNN_WIDTHS, config.resolutions()), nn.Linear(features, config.classes))


def cnn_of_size(config: ModelConfig, parameters: int) -> nn.Sequential:
    """The same kind of network with as many parameters as wanted.

    Its three widths stand as 1:2:3 and are as large as leaves room for a hidden layer of 32 units before the classes;
    the hidden layer then takes what is left, so that the number is met within half a unit of it.
    """
    best = _sized(config, 1, parameters)
    step = 2
    while (wider := _sized(config, step, parameters))[1] >= LEAST_HIDDEN:
        best, step = wider, step + 1
    widths, hidden = best
    return nn.Sequential(
        trunk(config.channels, widths, config.resolutions()),
        nn.Linear(_features(widths, config), max(1, hidden)),
        nn.ReLU(inplace=True),
        nn.Linear(max(1, hidden), config.classes),
    )


def _sized(config: ModelConfig, step: int, parameters: int) -> tuple[tuple[int, ...], int]:
    """Widths of a multiple of 8, and the hidden units with which the network comes nearest to `parameters`."""
    widths = tuple(WIDTH_STEP * step * k for k in (1, 2, 3))
    convolutions = sum(p.numel() for p in trunk(config.channels, widths, config.resolutions()).parameters())
    return widths, round(
        (parameters - convolutions - config.classes) / (_features(widths, config) + 1 + config.classes)
    )


def _features(widths: tuple[int, ...], config: ModelConfig) -> int:
    sides = config.resolutions()
    return widths[min(len(sides), len(widths)) - 1] * sides[-1] ** 2


def cross_entropy_of_anything(network: nn.Module, pixels: Tensor) -> Tensor:
    """The loss on images [N, C, S, S] that all count as the first class: what it costs does not depend on labels."""
    return F.cross_entropy(network(pixels), torch.zeros(len(pixels), dtype=torch.long, device=pixels.device))


def training_device() -> torch.device:
    """Where networks are trained: on the GPU, if there is one, as our own training does."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fit_network(
    network: nn.Module,
    images: LabelledImages,
    settings: TrainConfig,
    steps: int,
    fill: float,
    progress: Progress | None = None,
) -> nn.Module:
    """Train a network from float [N, C, S, S] to logits as ours is trained, for a given number of steps.

    Args:
        network: trained in place; the seed of its first weights is the caller's affair.
        images: uint8; a step takes `settings.batch_for(len(images))` of them.
        settings: of which the augmentation, the rates, the average and the seed are used.
        fill: from 0 to 1, what comes in from outside the frame.
        progress: called after each step with (step, steps, {"total": loss}).

    Returns:
        the average of the weights, on the CPU and in evaluation mode.

    Raises:
        CheckpointError: if the gradient is not finite.
    """
    device = training_device()
    for parameter in network.to(device).parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    average = copy.deepcopy(network).requires_grad_(False)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.99))
    bf16 = settings.bf16 if settings.bf16 is not None else fast_bf16(device)
    batch = settings.batch_for(len(images))
    per_epoch = len(images) // batch
    everything, labels = torch.from_numpy(images.images).to(device), torch.from_numpy(images.labels).to(device)
    changes: dict[str, Any] = {**settings.augmentation(len(images)), "mirror": bool(settings.mirror), "fill": fill}
    order = np.empty(0, np.int64)
    network.train()
    for step in range(steps):
        epoch, index = divmod(step, per_epoch)
        if index == 0:
            order = np.random.default_rng([settings.seed, epoch]).permutation(len(images))
        chosen = torch.from_numpy(order[index * batch : (index + 1) * batch]).to(device)
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        pixels = everything[chosen].permute(0, 3, 1, 2).float().div_(255.0)
        pixels, _ = affine_augment(pixels, generator, **changes)
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine_lr(step, steps, settings.learning_rate, settings.warmup)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = network(pixels.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels[chosen], label_smoothing=settings.weights.smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if not math.isfinite(float(torch.nn.utils.clip_grad_norm_(network.parameters(), settings.gradient_clip))):
            raise CheckpointError(f"training diverged at step {step} of {steps}: the gradient is not finite")
        optimizer.step()
        _follow(average, network, min(settings.ema, (2 + step) / (11 + step)))
        if progress is not None:
            progress(step + 1, steps, {"total": float(loss.detach())})
    return average.cpu().eval()


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the average towards the network: weights and the normalization's statistics."""
    for ours, theirs in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if ours.is_floating_point():
            ours.lerp_(theirs, 1.0 - decay)


@torch.no_grad()
def network_probabilities(network: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probabilities [N, K] of uint8 images [N, S, S, C]; the network is put into evaluation mode."""
    network.eval()
    starts = range(0, len(images), PREDICTED_AT_ONCE)
    parts = [network(to_float(images[i : i + PREDICTED_AT_ONCE])).softmax(1) for i in starts]
    return torch.cat(parts).numpy()


def flat(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [N, S, S, C] to float32 [N, S·S·C] in [0, 1]: what scikit-learn's models take."""
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255.0)


def import_estimators() -> None:
    """Import scikit-learn, so that the seconds which that takes are not counted as training."""
    import sklearn.linear_model
    import sklearn.svm  # noqa: F401


def fit_svm(images: LabelledImages) -> Any:
    """scikit-learn's support vector machine: radial kernel, C = 10, gamma by the pixels' variance ("scale").

    It decides by the highest of its one-against-rest scores, so that a file with these scores decides alike.
    """
    from sklearn.svm import SVC

    return SVC(C=SVM_C, gamma="scale", break_ties=True).fit(flat(images.images), images.labels)


def fit_logistic(images: LabelledImages) -> Any:
    """scikit-learn's logistic regression over all classes at once: C = 0.1, L-BFGS, 300 iterations at most."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the limit is said above
        return LogisticRegression(C=LOGISTIC_C, max_iter=LOGISTIC_ITERATIONS).fit(flat(images.images), images.labels)


def estimator_cost(estimator: Any) -> tuple[int, int]:
    """Stored numbers, and multiply-accumulates for one image, of `fit_svm`'s and `fit_logistic`'s results.

    A support vector costs one product of all pixels, and its weights in the classes' votes.
    """
    if hasattr(estimator, "support_vectors_"):
        count, pixels = estimator.support_vectors_.shape
        numbers = count * pixels + estimator.dual_coef_.size
        return numbers + estimator.intercept_.size, numbers
    return estimator.coef_.size + estimator.intercept_.size, estimator.coef_.size


COUNTED_BATCH = 4


@dataclass(frozen=True)
class Cost:
    """Learned numbers that one decision depends on, and multiply-accumulates for one image."""

    parameters: int
    macs: int


def inference_cost(network: nn.Module, image: Tensor) -> Cost:
    """What `network` costs for one image, given as a batch of one, of the type and form that it takes.

    The network is traced and what its output does not depend on is removed, so that only what runs is counted: a
    decoder behind a reconstruction that nobody asked for costs nothing.
    """
    traced = copy.deepcopy(network).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch.export about itself
        program = torch.export.export(traced, (image,)).run_decompositions({})
    program.graph.eliminate_dead_code()
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    names = {name for place, name in program.graph_signature.inputs_to_parameters.items() if place in used}
    parameters = sum(parameter.numel() for name, parameter in traced.named_parameters() if name in names)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        program.module()(image)
    return Cost(parameters, counter.get_total_flops() // 2)


def training_macs(network: nn.Module, loss: Callable[[nn.Module, Tensor], Tensor], size: int, channels: int) -> float:
    """Multiply-accumulates of one training step for one image: forward, and backward to all weights.

    Args:
        network: is copied, so that its normalization's statistics stay as they are.
        loss: gives the scalar loss of the network on float images [N, C, S, S].
    """
    pixels = torch.zeros(COUNTED_BATCH, channels, size, size)
    trained = copy.deepcopy(network).train()
    with FlopCounterMode(display=False) as counter:
        loss(trained, pixels).backward()
    return counter.get_total_flops() / 2 / COUNTED_BATCH


class Decision(nn.Module):
    """Of our network what the class depends on: float [N, C, S, S] to logits [N, K]."""

    def __init__(self, model: AngleVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """The logits."""
        return self.model(image).logits


def our_loss(model: nn.Module, pixels: Tensor) -> Tensor:
    """Our network's loss on images [N, C, S, S] that all count as the first class and as upright."""
    assert isinstance(model, AngleVAE)
    labels = torch.zeros(len(pixels), dtype=torch.long, device=pixels.device)
    angles = torch.zeros(len(pixels), device=pixels.device) if model.config.orientation else None
    return compute_losses(model.forward_train(pixels, labels, 0, 0), labels, angles, LossWeights())["total"]


PROBABILITIES = "probabilities"


class DecisionGraph(nn.Module):
    """`image` uint8 [N, S, S, C] to `probabilities` [N, K] of our network or of any that gives logits; nothing else."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """The probabilities."""
        pixels = to_pixels(image)
        if isinstance(self.network, AngleVAE):
            return self.network.probabilities(self.network(pixels).logits)
        return self.network(pixels).softmax(1)


def decision_onnx(network: nn.Module, size: int, channels: int, metadata: Mapping[str, Any]) -> onnx.ModelProto:
    """A network's probabilities as a graph; of ours the parts that they do not depend on are left out.

    Raises:
        ExportError: if the exporter fails.
    """
    return to_onnx(DecisionGraph(network), size, channels, (PROBABILITIES,), metadata)


def estimator_onnx(estimator: Any, size: int, channels: int, metadata: Mapping[str, Any]) -> onnx.ModelProto:
    """A classifier of scikit-learn as a graph of the same kind, by skl2onnx.

    A cast, a reshape and a scaling are put before it. Its output is called `probabilities` and is one number for each
    class that it was trained on: a probability, or what its decision function gives where it has no probabilities.
    """
    from skl2onnx import to_onnx as convert

    pixels = channels * size**2
    example = np.zeros((1, pixels), np.float32)
    options = {"zipmap": False, "raw_scores": not hasattr(estimator, "predict_proba")}
    with errors_only("skl2onnx"):
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
    classes = len(estimator.classes_)
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", size, size, channels]))
    graph.output.append(helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["batch", classes]))
    strip(model)
    set_metadata(model, {**metadata, "labels": [int(label) for label in estimator.classes_]})
    onnx.checker.check_model(model, full_check=True)
    return model
