"""The angle VAE, top to bottom in the order in which the data meets it, and its loss.

    image ─► OrientationEncoder ─► class logits, angle bins ─► θ
      └────► rotated by −θ ─► Backbone ─► mu, logvar ─► class logits;  Decoder(code, class) ─► reconstruction

The encoder's class logits come from mu, its pooled feature maps, or both (`ModelConfig.head`). With a pretrained
network (`ModelConfig.backbone`) both encoders share its weights.

Loss: reconstruction + β · KL + γ · cross-entropy + δ · angle, each term apart.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vae_edge_kernels.layout import NMS_BINS, WINDOW_BINS, NetworkLayout

from vae_edge.errors import ConfigError
from vae_edge.model.backbone import PretrainedBackbone, fold_backbone_batchnorm
from vae_edge.model.config import ModelConfig, create_config
from vae_edge.model.score import AnomalyScore
from vae_edge.ops.packing import ScoreMode, network_layout
from vae_edge.ops.reparameterize import reparameterize
from vae_edge.ops.rotate import circular_mask, rotate
from vae_edge.spec import parse_size

MIN_DECODER_WIDTH = 48  # input channels of the decoder's last layer, at least
PRETRAINED_ORIENTATION_WIDTH = 96  # channels that a pretrained network's last maps are reduced to for the angle
MIN_LOGVAR, MAX_LOGVAR = -10.0, 5.0  # of the posterior from which codes are drawn
ANGLE_NOISE_DEG = 4.0  # std of the noise added to the angle in training, so that the encoder tolerates small errors

SCHEMA_1_NAMES = {
    "pose.trunk.": "orientation.backbone.",
    "pose.classes.": "orientation.classifier.",
    "pose.bins.": "orientation.angle_bins.",
    "score.most_expected": "score.max_expected_error",
    "score.centre": "score.loc",
    "score.spread": "score.scale",
}
"""Prefixes of parameters and buffers in files of schema 1, and what they are called now."""


def current_name(name: str) -> str:
    """Translate a parameter's or module's name in a file of schema 1. Names of today stay as they are."""
    for old, new in SCHEMA_1_NAMES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def conv_bn_relu(in_channels: int, out_channels: int, stride: int = 1, kernel_size: int = 3) -> nn.Sequential:
    """3×3 convolution, batch normalization, ReLU. It folds into one fused kernel and one int8 layer."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def channels_last(image: Tensor) -> Tensor:
    """The same values [N, C, H, W] in channels-last memory format.

    PyTorch takes an image of one channel for channels-first, and so the outputs of its convolutions. Every later
    gradient is then converted on its way back, which costs a quarter of a training step. Explicit strides avoid it.
    """
    n, channels, height, width = image.shape
    if channels == 1 and image.is_contiguous():
        return image.as_strided((n, 1, height, width), (height * width, 1, width, 1))
    return image.contiguous(memory_format=torch.channels_last)


class PooledLinear(nn.Linear):
    """A linear layer on the average pool of flattened feature maps, [N, channels · area] to [N, out_features]."""

    def __init__(self, channels: int, area: int, out_features: int) -> None:
        super().__init__(channels, out_features)
        self.area = area

    def forward(self, features: Tensor) -> Tensor:
        """The mean over the maps' pixels, then the layer."""
        return super().forward(features.unflatten(1, (self.in_features, self.area)).mean(2))

    def on_features(self) -> nn.Linear:
        """One linear layer that computes the same."""
        layer = nn.Linear(self.in_features * self.area, self.out_features, device=self.weight.device)
        with torch.no_grad():
            layer.weight.copy_(self.weight.repeat_interleave(self.area, 1) / self.area)
            layer.bias.copy_(self.bias)
        return layer


class Backbone(nn.Module):
    """The convolutions of `ModelConfig.convolutions`: image [N, channels, H, W] to features [N, channels · h · w].

    h and w are the last resolution. In training the image goes in with its channels last.
    """

    def __init__(self, config: ModelConfig, widths: tuple[int, ...], pooled: bool = False) -> None:
        super().__init__()
        channels, layers = config.channels, []
        convolutions = config.convolutions(widths, pooled)
        for width, stride in convolutions:
            layers.append(conv_bn_relu(channels, width, stride))
            channels = width
        self.layers = nn.ModuleList(layers)
        self.features, self.channels = config.features(widths, pooled), channels
        self.feature_layer = config.feature_layer(pooled)
        self.map_channels = convolutions[self.feature_layer][0]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, F], and the feature maps [N, map_channels, h, w] of the feature layer."""
        x = channels_last(image) if self.training else image
        maps = x
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index == self.feature_layer:
                maps = x
        return x.flatten(1), maps


@dataclass
class AngleUncertainty:
    """What a distribution over angle bins says beside its best angle. Each is [N].

    Attributes:
        confidence: mean resultant length of the whole distribution (Mardia and Jupp 2000, section 2.3); 0 is any
            angle, 1 is certain.
        second_cos: x of the direction of the second angle, not normalized.
        second_sin: y of the same.
        second_prob: probability of the second angle: that of the bins in its window.
    """

    confidence: Tensor
    second_cos: Tensor
    second_sin: Tensor
    second_prob: Tensor


class OrientationEncoder(nn.Module):
    """Image to class logits and to logits of angle bins. Bin k is centred on 2πk / K radians.

    Where the classifier is pooled there are no class logits of the orientation encoder, whose features know places: on
    photographs they made unseen regions worse. Without `shared` it has convolutions of its own. With a
    pretrained network, whose weights belong to the encoder, it reads that network's last feature maps, reduced to fewer
    channels (`read_maps`).
    """

    window: Tensor
    nms_penalty: Tensor
    bin_axes: Tensor

    def __init__(self, config: ModelConfig, shared: PretrainedBackbone | None = None) -> None:
        super().__init__()
        self.backbone: Backbone | None = None
        if shared is None:
            self.backbone = Backbone(config, config.orientation_widths)
            features, self.map_channels = self.backbone.features, self.backbone.map_channels
        else:
            self.reduction = conv_bn_relu(shared.channels, PRETRAINED_ORIENTATION_WIDTH, kernel_size=1)
            features = PRETRAINED_ORIENTATION_WIDTH * math.prod(shared.last_size)
            self.map_channels = shared.map_channels
        self.classifier = None if config.pooled else nn.Linear(features, config.classes)
        self.angle_bins = nn.Linear(features, config.angle_bins)
        count = config.angle_bins
        index = torch.arange(count)
        distance = (index[:, None] - index[None, :]).abs()
        distance = torch.minimum(distance, count - distance)  # around the circle
        centres = index * (2 * math.pi / count)
        axes = torch.stack([centres.cos(), centres.sin(), torch.ones(count)], 1)
        bin_axes = torch.block_diag(axes[:, :2], axes, axes[:, :2])
        self.register_buffer("window", (distance <= WINDOW_BINS).float(), persistent=False)
        self.register_buffer("nms_penalty", (distance <= NMS_BINS).float() * -1e6, persistent=False)  # added to logits
        self.register_buffer("bin_axes", bin_axes, persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Image [N, C, H, W] to class logits [N, classes] or None, bin logits [N, bins], maps of the feature layer."""
        assert self.backbone is not None
        features, maps = self.backbone(image)
        logits = None if self.classifier is None else self.classifier(features)
        return logits, self.angle_bins(features), maps

    def read_maps(self, last: Tensor) -> Tensor:
        """The last feature maps [N, C, h, w] of a pretrained network to logits of the angle bins."""
        return self.angle_bins(self.reduction(last).flatten(1))

    def decode_angle(self, bin_logits: Tensor) -> tuple[Tensor, Tensor, AngleUncertainty]:
        """Bin logits [N, K] to (cos θ [N], sin θ [N], uncertainty).

        θ is the circular mean of the best bin's window. The second angle is that of the best bin outside it
        (non-maximum suppression). All sums over bins are one product with a constant matrix: at batch 1 an operator
        costs more than its arithmetic.
        """
        probs, best = bin_logits.softmax(1), bin_logits.argmax(1)
        second = (bin_logits + self.nms_penalty.index_select(0, best)).argmax(1)
        windows = [probs * self.window.index_select(0, bin) for bin in (best, second)]

        sums = torch.cat([*windows, probs], 1) @ self.bin_axes
        cos, sin = sums[:, 0], sums[:, 1]
        second_cos, second_sin, second_prob = sums[:, 2], sums[:, 3], sums[:, 4]
        all_cos, all_sin = sums[:, 5], sums[:, 6]

        length = torch.sqrt(cos * cos + sin * sin + 1e-12)
        confidence = torch.sqrt(all_cos * all_cos + all_sin * all_sin)
        return cos / length, sin / length, AngleUncertainty(confidence, second_cos, second_sin, second_prob)


class Decoder(nn.Module):
    """Code [N, latent] and class weights [N, K] to the logits of an upright image [N, C, h, w].

    The image is as large as the stem leaves it (`ModelConfig.decoded_size`): smaller than the input above 64×64 pixels.
    A convolution on a coarse grid. Each cell of the grid becomes a block of 4×4 pixels (8×8 for images over 32 pixels)
    by a sub-pixel convolution (Shi et al. 2016). Layers are few and small, since the anomaly score runs them at
    inference.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.size, self.grid, self.block = config.decoded_size, config.decoder_grid, config.decoder_block
        self.width = config.widths[0]
        self.first = nn.Linear(config.latent + config.classes, self.width * math.prod(self.grid))
        encoded = config.convolutions(config.widths, True)[-1][0] if config.pooled else config.widths[-1]
        width = max(encoded, MIN_DECODER_WIDTH)
        self.middle = conv_bn_relu(self.width, width)
        self.last = nn.Conv2d(width, config.channels * self.block**2, 1)

    def forward(self, code: Tensor, class_weights: Tensor) -> Tensor:
        """Code [N, latent] and class weights [N, K] to logits of pixels [N, C, h, w]."""
        x = F.relu(self.first(torch.cat([code, class_weights], 1)))
        x = x.reshape(-1, self.width, *self.grid)
        x = self.last(self.middle(channels_last(x) if self.training else x))
        return F.pixel_shuffle(x, self.block)[:, :, : self.size[0], : self.size[1]]


@dataclass
class Orientation:
    """Which way up an image is.

    Attributes:
        cos: cos θ [N].
        sin: sin θ [N].
        logits: class logits of the orientation encoder [N, K]; None where the classifier is pooled.
        bin_logits: logits of the angle bins [N, bins].
        uncertainty: how certain θ is.
        maps: feature maps [N, W, h, w], for the score.

    All but cos and sin are None without an orientation encoder.
    """

    cos: Tensor
    sin: Tensor
    logits: Tensor | None = None
    bin_logits: Tensor | None = None
    uncertainty: AngleUncertainty | None = None
    maps: Tensor | None = None


@dataclass
class Output:
    """Result of one pass.

    Attributes:
        logits: class logits [N, K].
        mu: mean of the code's posterior [N, Z].
        logvar: its log-variance [N, Z].
        kl: KL divergence from the standard normal [N]; None at inference.
        upright: the derotated image [N, C, H, W].
        target: what the reconstruction is compared with: the derotated image at the decoder's size, [N, C, h, w].
        reconstruction: decoder's image [N, C, h, w] in [0, 1]; its logits in training.
        orientation: the angle, and what comes with it.
        features: input of the anomaly score [N, F]; None in training.
        parts: the class logits [N, K] of each classifier, whose sum `logits` is: "code", "pooled", "orientation".
    """

    logits: Tensor
    mu: Tensor
    logvar: Tensor
    kl: Tensor | None
    upright: Tensor
    target: Tensor
    reconstruction: Tensor
    orientation: Orientation
    features: Tensor | None
    parts: dict[str, Tensor]


class AngleVAE(nn.Module):
    """Orientation, derotated image, posterior of the code, classes, decoder. Images are float [N, C, H, W] in [0, 1].

    Angles are radians, counter-clockwise as displayed; upright is 0. No gradient flows through the rotation.

    `temperature` (scalar) divides the logits before the softmax of the probabilities (Guo et al. 2017, eq. 9), and
    nowhere else: the decoder's class weights and the anomaly score do not depend on it.
    """

    temperature: Tensor
    mask: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        shared = None if config.backbone is None else PretrainedBackbone(config)
        self.orientation = OrientationEncoder(config, shared) if config.orientation else None
        self.encoder = Backbone(config, config.widths, config.pooled) if shared is None else shared
        self.mu = nn.Linear(self.encoder.features, config.latent)
        self.logvar = nn.Linear(self.encoder.features, config.latent)
        self.classifier: nn.Module
        if config.pooled:
            self.classifier = nn.Linear(self.encoder.channels, config.classes)
        else:
            first, last = nn.Linear(config.latent, config.hidden), nn.Linear(config.hidden, config.classes)
            self.classifier = nn.Sequential(first, nn.ReLU(inplace=True), last)
        self.second_classifier: nn.Module | None = None
        if config.second_classifier:
            area = self.encoder.features // self.encoder.channels
            self.second_classifier = PooledLinear(self.encoder.channels, area, config.classes)
        self.decoder = Decoder(config)
        features = self.encoder.map_channels + config.latent + config.classes
        if self.orientation is not None:
            features += self.orientation.map_channels + 1
        self.score = AnomalyScore(config.classes, config.latent, features, angle=config.orientation)
        self.register_buffer("temperature", torch.ones(()))
        masked = config.circular_mask and config.orientation
        self.register_buffer("mask", circular_mask(config.size) if masked else None, persistent=False)
        nn.init.zeros_(self.logvar.weight)
        nn.init.constant_(self.logvar.bias, -2.0)

    def class_logits(
        self, encoded: Tensor, means: Tensor, mu: Tensor, orientation: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Class logits [N, K], and the parts that they are the sum of (`Output.parts`).

        The orientation encoder saw the image as it came, the encoder the derotated one.

        Args:
            encoded: the encoder's features [N, F]; of a pretrained network they are its pooled feature maps.
            means: the average pool of its feature layer's maps [N, C].
            mu: mean of the code [N, Z].
            orientation: class logits [N, K] of the orientation encoder, if it gives any.
        """
        if self.config.pooled:
            parts = {"pooled": self.classifier(means if self.config.backbone is None else encoded)}
        else:
            parts = {"code": self.classifier(mu)}
        if self.second_classifier is not None:
            parts["pooled"] = self.second_classifier(encoded)
        if orientation is not None:
            parts["orientation"] = orientation
        return functools.reduce(torch.add, parts.values()), parts

    def for_export(self) -> AngleVAE:
        """A model that computes the same, as it is exported.

        A pretrained network's batch normalization is folded into its convolutions, so that a graph that runs it twice
        holds its weights once. A second classifier's average pool is folded into its weights, so that it reads the
        same tensor as mu.
        """
        if not isinstance(self.encoder, PretrainedBackbone) and not isinstance(self.second_classifier, PooledLinear):
            return self
        exported = copy.deepcopy(self)
        if isinstance(exported.encoder, PretrainedBackbone):
            fold_backbone_batchnorm(exported.encoder)
        if isinstance(exported.second_classifier, PooledLinear):
            exported.second_classifier = exported.second_classifier.on_features()
        return exported

    def probabilities(self, logits: Tensor) -> Tensor:
        """Class logits [N, K] to calibrated probabilities [N, K]."""
        return (logits / self.temperature).softmax(1)

    def apply_mask(self, image: Tensor) -> Tensor:
        """With `config.circular_mask`: set the pixels outside the inscribed circle to `config.fill`."""
        if self.mask is None:
            return image
        return image * self.mask + self.config.fill * (1.0 - self.mask)

    def reduce(self, image: Tensor) -> Tensor:
        """Images [N, C, H, W] at the decoder's size [N, C, h, w]: means of squares of pixels.

        A last row or column that does not fill its square counts repeatedly.
        """
        factor = 2**self.config.halvings
        if factor == 1:
            return image
        below, beside = -self.config.height % factor, -self.config.width % factor
        if below or beside:
            image = F.pad(image, (0, beside, 0, below), mode="replicate")
        return F.avg_pool2d(image, factor)

    def enlarge(self, decoded: Tensor) -> Tensor:
        """The decoder's images [N, C, h, w], in [0, 1], at the size of the input [N, C, H, W]: bilinear."""
        factor = 2**self.config.halvings
        if factor == 1:
            return decoded
        larger = F.interpolate(decoded, scale_factor=factor, mode="bilinear", align_corners=False)
        return larger[:, :, : self.config.height, : self.config.width]

    def decode(self, code: Tensor, class_weights: Tensor) -> Tensor:
        """Codes [N, latent] and class weights [N, K] to upright images [N, C, H, W] in [0, 1]."""
        return self.enlarge(self.decoder(code, class_weights).sigmoid())

    def predict_angle(self, image: Tensor) -> Orientation:
        """Predict which way up images [N, C, H, W] are. Without an orientation encoder they count as upright."""
        if self.orientation is None:
            zero = image.flatten(1).sum(1) * 0.0  # of the batch's size in an exported graph
            return Orientation(zero + 1.0, zero)
        if isinstance(self.encoder, PretrainedBackbone):
            last, maps = self.encoder.feature_maps(image)
            logits, bin_logits = None, self.orientation.read_maps(last)
        else:
            logits, bin_logits, maps = self.orientation(image)
        cos, sin, uncertainty = self.orientation.decode_angle(bin_logits.float().detach())
        return Orientation(cos, sin, logits, bin_logits, uncertainty, maps)

    def forward(self, image: Tensor) -> Output:
        """Deterministic pass of inference: the code is mu, the decoder's class weights are the softmax of the logits.

        Args:
            image: float [N, C, H, W].
        """
        orientation, upright, encoded, maps = self._encode(image)
        mu, logvar = self.mu(encoded), self.logvar(encoded)
        means = maps.mean((2, 3))
        logits, parts = self.class_logits(encoded, means, mu, orientation.logits)
        weights = logits.softmax(1)
        reconstruction = self.decoder(mu, weights).sigmoid()

        features = [means, mu, weights]
        if orientation.maps is not None and orientation.uncertainty is not None:
            uncertainty = (1.001 - orientation.uncertainty.confidence).log()
            features = [orientation.maps.mean((2, 3)), *features, uncertainty[:, None]]
        target, joined = self.reduce(upright), torch.cat(features, 1)
        return Output(logits, mu, logvar, None, upright, target, reconstruction, orientation, joined, parts)

    def classify(self, image: Tensor) -> Tensor:
        """The logits [N, K] of `forward` alone."""
        orientation, _, encoded, maps = self._encode(image)
        return self.class_logits(encoded, maps.mean((2, 3)), self.mu(encoded), orientation.logits)[0]

    def _encode(self, image: Tensor) -> tuple[Orientation, Tensor, Tensor, Tensor]:
        """The orientation, the derotated image, the encoder's features, and the maps of its feature layer."""
        image = self.apply_mask(image)
        orientation = self.predict_angle(image)
        upright = image
        if self.orientation is not None:
            upright = rotate(image, orientation.cos, -orientation.sin, self.config.fill)
        return orientation, upright, *self.encoder(upright)

    def forward_train(
        self,
        image: Tensor,
        classes: Tensor,
        seed: int,
        offset: int | Sequence[tuple[int, int]],
        angle_noise: Tensor | None = None,
    ) -> Output:
        """Forward pass of training: the code is sampled from the posterior, the decoder gets the labels.

        Args:
            image: float [N, C, H, W].
            classes: labels int64 [N], or class weights float [N, K].
            seed: seed of the code's noise.
            offset: offset of the first image's first number in the noise's stream; or (images, offset) of each
                segment of the batch.
            angle_noise: float [N], radians, added to the predicted angle, so that the encoder tolerates small errors.

        Returns:
            `reconstruction` holds logits.
        """
        image = self.apply_mask(image)
        orientation = self.predict_angle(image)
        upright = image
        if self.orientation is not None:
            noise = torch.zeros_like(orientation.cos) if angle_noise is None else angle_noise
            noisy_cos = orientation.cos * noise.cos() - orientation.sin * noise.sin()
            noisy_sin = orientation.sin * noise.cos() + orientation.cos * noise.sin()
            upright = rotate(image, noisy_cos, -noisy_sin, self.config.fill)

        encoded, maps = self.encoder(upright)
        mu, logvar = self.mu(encoded).float(), self.logvar(encoded).float().clamp(MIN_LOGVAR, MAX_LOGVAR)
        code, kl = sample_posterior(mu, logvar, seed, offset)
        logits, parts = self.class_logits(encoded, maps.mean((2, 3)), mu, orientation.logits)

        weights = classes if classes.is_floating_point() else F.one_hot(classes, self.config.classes)
        reconstruction = self.decoder(code, weights.to(code.dtype))
        target = self.reduce(upright)
        return Output(logits, mu, logvar, kl, upright, target, reconstruction, orientation, None, parts)


def sample_posterior(
    mu: Tensor, logvar: Tensor, seed: int, offset: int | Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Codes [N, Z] and KL divergences [N], segment by segment where the noise has several offsets."""
    if isinstance(offset, int):
        return reparameterize(mu, logvar, seed, offset)
    sizes, offsets = [size for size, _ in offset], [first for _, first in offset]
    segments = zip(mu.split(sizes), logvar.split(sizes), offsets, strict=True)
    codes, divergences = zip(*(reparameterize(m, v, seed, first) for m, v, first in segments), strict=True)
    return torch.cat(codes), torch.cat(divergences)


REFERENCE_PIXELS = 28 * 28
BIN_SIGMA_DEG = 6.0  # width of the soft target around the true angle
PART_WEIGHT = 0.5  # of the cross-entropy of each classifier's logits, relative to that of their sum


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss.

    Attributes:
        beta: β of the KL divergence.
        gamma: γ of the cross-entropy.
        delta: δ of the angle's term.
        smoothing: label smoothing of the cross-entropy.
    """

    beta: float = 1.0
    gamma: float = 100.0
    delta: float = 50.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Refuse weights that no loss can have."""
        for name, value in vars(self).items():
            if not math.isfinite(value) or value < 0 or (name == "gamma" and value == 0):
                raise ConfigError(
                    f"{name} {value}: expected a finite number, {'above' if name == 'gamma' else 'at least'} 0"
                )


def angle_targets(angle_rad: Tensor, bins: int) -> Tensor:
    """Soft targets [N, bins]: a von Mises distribution around each angle [N]. Rows sum to 1."""
    centres = torch.arange(bins, device=angle_rad.device) * (2 * math.pi / bins)
    kappa = 1.0 / math.radians(BIN_SIGMA_DEG) ** 2
    return (kappa * (angle_rad[:, None] - centres[None, :]).cos()).softmax(1)


def mutual_information(joint: Tensor) -> Tensor:
    """Mutual information, in nats, of two labellings with joint probabilities [K, K], which are made symmetric first.

    Ji, Henriques and Vedaldi, "Invariant information clustering" (2019), eq. 3. It is greatest where both labellings
    agree on every image and all classes are equally frequent.
    """
    joint = ((joint + joint.T) / 2).clamp_min(1e-6)
    independent = joint.sum(0).log()[None, :] + joint.sum(1).log()[:, None]
    return (joint * (joint.log() - independent)).sum()


def compute_losses(
    output: Output,
    labels: Tensor,
    angle_rad: Tensor | None,
    weights: LossWeights,
    sample_weight: Tensor | None = None,
) -> dict[str, Tensor]:
    """The terms of the loss of one batch, means over images in nats, and their weighted sum, `total`.

    The reconstruction is the Bernoulli negative log-likelihood of the upright image, at the decoder's size, under the
    decoder's logits, minus the image's own entropy (a perfect copy costs 0), scaled to 28×28 pixels of one channel. So
    the balance of the terms does not depend on the image's size. Where the class logits are a sum, each part
    is trained at half weight as well. Else the one that learns faster, of the orientation encoder, leaves the other
    little to learn: the code then says little of the class, and the anomaly score little of what is usual.

    Args:
        output: of `AngleVAE.forward_train`.
        labels: classes int64 [N].
        angle_rad: true angles [N].
        weights: of the terms.
        sample_weight: weight [N] of each image's label; None: 1 each.
    """
    target = output.target.float()
    pixels = target[0].numel()
    entropy = -(torch.xlogy(target, target) + torch.xlogy(1 - target, 1 - target)).sum()
    likelihood = F.binary_cross_entropy_with_logits(output.reconstruction.float(), target, reduction="sum")
    reconstruction = (likelihood - entropy) / len(target) * (REFERENCE_PIXELS / pixels)
    assert output.kl is not None
    kl = output.kl.mean()

    def cross_entropy(logits: Tensor) -> Tensor:
        each = F.cross_entropy(logits.float(), labels, label_smoothing=weights.smoothing, reduction="none")
        return each.mean() if sample_weight is None else (sample_weight * each).mean()

    classes = cross_entropy(output.logits)
    terms = {"reconstruction": reconstruction, "kl": kl, "classes": classes}
    total = reconstruction + weights.beta * kl + weights.gamma * classes
    bin_logits = output.orientation.bin_logits
    if bin_logits is not None and angle_rad is not None:
        terms["angle"] = F.cross_entropy(bin_logits.float(), angle_targets(angle_rad, bin_logits.shape[1]))
        total = total + weights.delta * terms["angle"]
    if len(output.parts) > 1:
        parts = {f"{name}_classes": cross_entropy(logits) for name, logits in output.parts.items()}
        terms.update(parts)
        total = total + PART_WEIGHT * weights.gamma * sum(parts.values())
    terms["total"] = total / weights.gamma
    return terms


def layout_for_preset(name: str, score: ScoreMode = "full", int8: bool = False) -> NetworkLayout:
    """The layout of a preset, its anomaly score with as many clusters as training may find.

    Args:
        name: a preset, for grey images of 28×28 pixels; or PRESET@SIZE, such as `small@224` or `small@96x64`, for
            colour images of that size.
        score: mode of the anomaly score.
        int8: whether weights and activations are int8 instead of float16.

    Raises:
        ConfigError: the preset is unknown, or the size is none or out of range.
    """
    preset, at, size_of_images = name.partition("@")
    try:
        overrides = {"size": parse_size(size_of_images), "channels": 3} if at else {}
    except ValueError as error:
        raise ConfigError(f"network {name}: {error}") from None
    model = AngleVAE(create_config(preset, **overrides))
    size = model.score.components
    model.score.cluster_whitening = torch.zeros((model.config.classes * model.score.max_clusters(), size, size))
    return network_layout(model, score, int8)
