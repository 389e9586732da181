"""The angle VAE, from top to bottom in the order in which the data meets it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vae_edge_kernels.layout import FEATURE_LAYER, NMS_BINS, WINDOW_BINS

from vae_edge.model.config import ModelConfig
from vae_edge.model.score import RejectionScore
from vae_edge.ops.reparameterize import reparameterize
from vae_edge.ops.rotate import circular_mask, rotate

LEAST_WIDTH = 48  # channels that a cell of the decoder's grid is drawn from, at least
POSE_NOISE_DEG = 4.0  # spread of the error added to the angle in training, so that the encoder bears small ones


def unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3×3 convolution, batch normalization, ReLU: folds into one fused kernel and one int8 layer."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def channels_last(image: Tensor) -> Tensor:
    """The same values [N, C, S, S] with the channels next to each other in memory.

    With one channel PyTorch takes an image for channels-first, and what convolutions make of it as well: then every
    later gradient is converted on its way back, a quarter of a training step. Strides that say otherwise mend it.
    """
    n, channels, height, width = image.shape
    if channels == 1 and image.is_contiguous():
        return image.as_strided((n, 1, height, width), (height * width, 1, width, 1))
    return image.contiguous(memory_format=torch.channels_last)


class Trunk(nn.Module):
    """Image [N, channels, S, S] to features [N, widths[-1] · s · s] with s = sides[-1], layer by layer.

    In training the image goes in with its channels last.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], sides: list[int]) -> None:
        super().__init__()
        layers = [unit(channels, widths[0])]
        width = widths[0]
        for level in range(1, len(sides)):
            wider = widths[min(level, len(widths) - 1)]
            layers.append(unit(width, wider, stride=2))
            if level < len(widths):
                layers.append(unit(wider, wider))
            width = wider
        self.layers = nn.ModuleList(layers)
        self.features = width * sides[-1] ** 2
        self.tap_width = widths[1]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, F], and the feature maps [N, widths[1], S/2, S/2] of the third layer, for the score."""
        x = channels_last(image) if self.training else image
        tap = x
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index == FEATURE_LAYER:
                tap = x
        return x.flatten(1), tap


@dataclass
class Doubt:
    """What a distribution over angle bins says beside its best angle, each [N].

    `concentration`: mean resultant length of the whole distribution (Mardia and Jupp 2000, section 2.3): 0 is any
    angle, 1 is certain. `cos`, `sin`: towards the second-best angle, not of length 1; `share`: the probability in
    its window.
    """

    concentration: Tensor
    cos: Tensor
    sin: Tensor
    share: Tensor


class PoseTrunk(nn.Module):
    """Image to class logits and to logits of angle bins; bin k is centred on 2πk / K radians."""

    window: Tensor
    near: Tensor
    sums: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.trunk = Trunk(config.channels, config.pose_widths, config.resolutions())
        self.classes = nn.Linear(self.trunk.features, config.classes)
        self.bins = nn.Linear(self.trunk.features, config.angle_bins)
        count = config.angle_bins
        index = torch.arange(count)
        apart = (index[:, None] - index[None, :]).abs()
        apart = torch.minimum(apart, count - apart)
        centres = index * (2 * math.pi / count)
        axes = torch.stack([centres.cos(), centres.sin(), torch.ones(count)], 1)
        self.register_buffer("window", (apart <= WINDOW_BINS).float(), persistent=False)
        self.register_buffer("near", (apart <= NMS_BINS).float() * -1e6, persistent=False)  # added to logits
        self.register_buffer("sums", torch.block_diag(axes[:, :2], axes, axes[:, :2]), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image [N, C, S, S] to class logits [N, classes], bin logits [N, bins] and the trunk's tapped maps."""
        features, tap = self.trunk(image)
        return self.classes(features), self.bins(features), tap

    def read(self, bins: Tensor) -> tuple[Tensor, Tensor, Doubt]:
        """Bin logits [N, K] to (cos θ [N], sin θ [N], doubt): θ is the circular mean of the bins around the best one.

        The second-best bin is the best of those whose window does not meet the first one's. All sums over bins are one
        product with a constant matrix, since at batch 1 an operator costs more than its arithmetic.
        """
        share, best = bins.softmax(1), bins.argmax(1)
        second = (bins + self.near.index_select(0, best)).argmax(1)
        windows = [share * self.window.index_select(0, bin) for bin in (best, second)]
        sums = torch.cat([*windows, share], 1) @ self.sums
        cos, sin, second_cos, second_sin, second_share, all_cos, all_sin = [sums[:, k] for k in range(7)]
        length = torch.sqrt(cos * cos + sin * sin + 1e-12)
        concentration = torch.sqrt(all_cos * all_cos + all_sin * all_sin)
        return cos / length, sin / length, Doubt(concentration, second_cos, second_sin, second_share)


class Decoder(nn.Module):
    """Content [N, latent] and class weights [N, K] to the logits of an upright image [N, C, S, S].

    A convolution on a coarse grid, each of whose cells becomes a block of 4×4 pixels (8×8 for images over 32 pixels)
    by a product with its features (Shi et al. 2016): few layers and small, since the rejection score runs them at
    inference.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.size, self.block = config.size, 4 if config.size <= 32 else 8
        self.grid = -(-config.size // self.block)
        self.width = config.widths[0]
        self.first = nn.Linear(config.latent + config.classes, self.width * self.grid**2)
        width = max(config.widths[-1], LEAST_WIDTH)
        self.middle = unit(self.width, width)
        self.last = nn.Conv2d(width, config.channels * self.block**2, 1)

    def forward(self, content: Tensor, classes: Tensor) -> Tensor:
        """Content [N, latent] and class weights [N, K] to logits of pixels [N, C, S, S]."""
        x = F.relu(self.first(torch.cat([content, classes], 1))).reshape(-1, self.width, self.grid, self.grid)
        x = self.last(self.middle(channels_last(x) if self.training else x))
        return F.pixel_shuffle(x, self.block)[:, :, : self.size, : self.size]


@dataclass
class Pose:
    """Which way up an image is: cos θ and sin θ [N]; and, with a pose trunk, how that was read.

    `logits`: the pose trunk's class logits [N, K]; `bins`: those of angle bins [N, bins]; `tap`: maps [N, W, S/2, S/2].
    """

    cos: Tensor
    sin: Tensor
    logits: Tensor | None = None
    bins: Tensor | None = None
    doubt: Doubt | None = None
    tap: Tensor | None = None


@dataclass
class Output:
    """What one pass gives: class logits [N, K], posterior, upright image seen and its reconstruction, angle.

    `features` [N, F] is what the rejection score looks at; None in training.
    """

    logits: Tensor
    mu: Tensor
    logvar: Tensor
    kl: Tensor | None
    upright: Tensor
    reconstruction: Tensor
    pose: Pose
    features: Tensor | None


class AngleVAE(nn.Module):
    """Pose, image turned back, posterior of the content, classes, decoder. Images are float [N, C, S, S] in [0, 1].

    Angles are radians, counter-clockwise as displayed; upright is 0. No gradient runs through the turning.

    `temperature` (scalar) divides the logits where they become probabilities (Guo et al. 2017, eq. 9), and nowhere
    else: neither what the decoder is told nor the rejection score changes with it.
    """

    temperature: Tensor
    frame: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.pose = PoseTrunk(config) if config.pose else None
        self.encoder = Trunk(config.channels, config.widths, config.resolutions())
        self.mu = nn.Linear(self.encoder.features, config.latent)
        self.logvar = nn.Linear(self.encoder.features, config.latent)
        self.classifier = nn.Sequential(
            nn.Linear(config.latent, config.hidden), nn.ReLU(inplace=True), nn.Linear(config.hidden, config.classes)
        )
        self.decoder = Decoder(config)
        features = self.encoder.tap_width + config.latent + config.classes
        if self.pose is not None:
            features += self.pose.trunk.tap_width + 1
        self.score = RejectionScore(config.classes, config.latent, features, angle=config.pose)
        self.register_buffer("temperature", torch.ones(()))
        windowed = config.window and config.pose
        self.register_buffer("frame", circular_mask(config.size) if windowed else None, persistent=False)
        nn.init.zeros_(self.logvar.weight)
        nn.init.constant_(self.logvar.bias, -2.0)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Class logits [N, K] to calibrated probabilities [N, K]."""
        return (logits / self.temperature).softmax(1)

    def see(self, image: Tensor) -> Tensor:
        """The image as the network sees it: with `config.window` through a round window, `config.fill` around it."""
        if self.frame is None:
            return image
        return image * self.frame + self.config.fill * (1.0 - self.frame)

    def find_angle(self, image: Tensor) -> Pose:
        """Which way up images [N, C, S, S] are; without a pose trunk they are taken as upright."""
        if self.pose is None:
            zero = image.flatten(1).sum(1) * 0.0
            return Pose(zero + 1.0, zero)
        logits, bins, tap = self.pose(image)
        cos, sin, doubt = self.pose.read(bins.float().detach())
        return Pose(cos, sin, logits, bins, doubt, tap)

    def forward(self, image: Tensor) -> Output:
        """The deterministic pass of inference: the content is mu, the class weights are those of the raw logits."""
        pose, upright, encoded, tap = self._encode(image)
        mu, logvar = self.mu(encoded), self.logvar(encoded)
        logits = self.combine(self.classifier(mu), pose.logits)
        weights = logits.softmax(1)
        reconstruction = self.decoder(mu, weights).sigmoid()
        features = [tap.mean((2, 3)), mu, weights]
        if pose.tap is not None and pose.doubt is not None:
            unsure = (1.001 - pose.doubt.concentration).log()
            features = [pose.tap.mean((2, 3)), *features, unsure[:, None]]
        return Output(logits, mu, logvar, None, upright, reconstruction, pose, torch.cat(features, 1))

    def classify(self, image: Tensor) -> Tensor:
        """The logits [N, K] of `forward` alone."""
        pose, _, encoded, _ = self._encode(image)
        return self.combine(self.classifier(self.mu(encoded)), pose.logits)

    def _encode(self, image: Tensor) -> tuple[Pose, Tensor, Tensor, Tensor]:
        """The pose, the image turned back, the encoder's features, and its maps for the score."""
        image = self.see(image)
        pose = self.find_angle(image)
        upright = rotate(image, pose.cos, -pose.sin, self.config.fill) if self.pose is not None else image
        return pose, upright, *self.encoder(upright)

    def training_pass(
        self,
        image: Tensor,
        classes: Tensor,
        seed: int,
        offset: int | Sequence[tuple[int, int]],
        error_rad: Tensor | None = None,
    ) -> Output:
        """The sampling pass: the content is drawn from the posterior, the decoder is told the classes.

        Args:
            image: float [N, C, S, S].
            classes: labels int64 [N], or weights of the classes float [N, K].
            seed: fixes the noise of the content.
            offset: place of the first image's first number in the noise; or (images, place) for one stretch of images
                after the other.
            error_rad: float [N], added to the angle found, so that the encoder bears small errors.

        Returns:
            `reconstruction` holds logits.
        """
        image = self.see(image)
        pose = self.find_angle(image)
        upright = image
        if self.pose is not None:
            error = torch.zeros_like(pose.cos) if error_rad is None else error_rad
            noisy_cos = pose.cos * error.cos() - pose.sin * error.sin()
            noisy_sin = pose.sin * error.cos() + pose.cos * error.sin()
            upright = rotate(image, noisy_cos, -noisy_sin, self.config.fill)
        encoded, _ = self.encoder(upright)
        mu, logvar = self.mu(encoded).float(), self.logvar(encoded).float().clamp(-10.0, 5.0)
        content, kl = _draw(mu, logvar, seed, offset)
        logits = self.combine(self.classifier(mu), pose.logits)
        weights = classes if classes.is_floating_point() else F.one_hot(classes, self.config.classes)
        reconstruction = self.decoder(content, weights.to(content.dtype))
        return Output(logits, mu, logvar, kl, upright, reconstruction, pose, None)

    @staticmethod
    def combine(content_logits: Tensor, pose_logits: Tensor | None) -> Tensor:
        """Both readers of the image vote: the one that saw it turned back, and the one that saw it as it came."""
        return content_logits if pose_logits is None else content_logits + pose_logits


def _draw(mu: Tensor, logvar: Tensor, seed: int, offset: int | Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Codes [N, Z] and KL divergences [N], stretch by stretch where the noise comes from several places."""
    if isinstance(offset, int):
        return reparameterize(mu, logvar, seed, offset)
    sizes, places = [size for size, _ in offset], [place for _, place in offset]
    parts = zip(mu.split(sizes), logvar.split(sizes), places, strict=True)
    codes, divergences = zip(*(reparameterize(m, v, seed, place) for m, v, place in parts), strict=True)
    return torch.cat(codes), torch.cat(divergences)
