"""The angle VAE, from top to bottom in the order in which the data meets it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_edge.model.config import ModelConfig
from vae_edge.model.score import RejectionScore
from vae_edge.ops.reparameterize import reparameterize
from vae_edge.ops.turn import turn

WINDOW_BINS = 2  # bins on either side of the best one that take part in the read-out of the angle
APART_BINS = 2 * WINDOW_BINS  # a second-best bin is further away from the best one than this: their windows do not meet
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


class Trunk(nn.Sequential):
    """Layers in a row; in training the image goes in with its channels last."""

    def forward(self, image: Tensor) -> Tensor:
        """Image [N, C, S, S] to features."""
        return super().forward(channels_last(image) if self.training else image)


def trunk(channels: int, widths: tuple[int, ...], sides: list[int]) -> Trunk:
    """Image [N, channels, S, S] to features [N, widths[-1] · s · s] with s = sides[-1]."""
    layers = [unit(channels, widths[0])]
    width = widths[0]
    for level in range(1, len(sides)):
        wider = widths[min(level, len(widths) - 1)]
        layers.append(unit(width, wider, stride=2))
        if level < len(widths):
            layers.append(unit(wider, wider))
        width = wider
    return Trunk(*layers, nn.Flatten())


def round_window(side: int) -> Tensor:
    """[S, S]: 1 inside the circle inscribed in the frame, 0 outside, falling over the last pixel of its radius.

    A pixel with any weight is at least partly within half the frame of the centre: when a full image is turned, what
    comes in from outside the frame stays (but for a trace in that last pixel) where the weight is 0.
    """
    line = torch.arange(side) + 0.5 - side / 2
    return (side / 2 - torch.hypot(line[:, None], line[None, :])).clamp(0.0, 1.0)


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
        sides = config.resolutions()
        self.trunk = trunk(config.channels, config.pose_widths, sides)
        features = config.pose_widths[min(len(sides), len(config.pose_widths)) - 1] * sides[-1] ** 2
        self.classes = nn.Linear(features, config.classes)
        self.bins = nn.Linear(features, config.angle_bins)
        count = config.angle_bins
        index = torch.arange(count)
        apart = (index[:, None] - index[None, :]).abs()
        apart = torch.minimum(apart, count - apart)
        centres = index * (2 * math.pi / count)
        axes = torch.stack([centres.cos(), centres.sin(), torch.ones(count)], 1)
        self.register_buffer("window", (apart <= WINDOW_BINS).float(), persistent=False)
        self.register_buffer("near", (apart <= APART_BINS).float() * -1e6, persistent=False)  # added to logits
        self.register_buffer("sums", torch.block_diag(axes[:, :2], axes, axes[:, :2]), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image [N, C, S, S] to class logits [N, classes] and bin logits [N, bins]."""
        features = self.trunk(image)
        return self.classes(features), self.bins(features)

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
    """Content [N, latent] and class weights [N, K] to the logits of an upright image [N, C, S, S]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.sides = config.resolutions()[::-1]
        top = len(self.sides) - 1
        widths = [config.widths[min(level, len(config.widths) - 1)] for level in range(top, 0, -1)] + [config.widths[0]]
        self.first = nn.Linear(config.latent + config.classes, widths[0] * self.sides[0] ** 2)
        self.width = widths[0]
        self.steps = nn.ModuleList(unit(widths[i], widths[i + 1]) for i in range(1, top))
        self.last = nn.Conv2d(widths[-1], config.channels, 3, padding=1)

    def forward(self, content: Tensor, classes: Tensor) -> Tensor:
        """Content [N, latent] and class weights [N, K] to logits of pixels [N, C, S, S]."""
        side = self.sides[0]
        x = F.relu(self.first(torch.cat([content, classes], 1))).reshape(-1, self.width, side, side)
        for side, step in zip(self.sides[1:], [*self.steps, self.last], strict=True):
            x = F.interpolate(channels_last(x) if self.training else x, scale_factor=2.0, mode="nearest")
            x = x[:, :, :side, :side]
            x = step(channels_last(x) if self.training else x)
        return x


@dataclass
class Output:
    """What one pass gives: class logits [N, K], posterior, upright image seen and its reconstruction, angle.

    Without a pose trunk the angle is 0, and `pose_logits`, `bins` and `doubt` are None.
    """

    logits: Tensor
    mu: Tensor
    logvar: Tensor
    kl: Tensor | None
    upright: Tensor
    reconstruction: Tensor
    cos: Tensor
    sin: Tensor
    pose_logits: Tensor | None
    bins: Tensor | None
    doubt: Doubt | None


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
        sides = config.resolutions()
        features = config.widths[min(len(sides), len(config.widths)) - 1] * sides[-1] ** 2
        self.pose = PoseTrunk(config) if config.pose else None
        self.encoder = trunk(config.channels, config.widths, sides)
        self.mu = nn.Linear(features, config.latent)
        self.logvar = nn.Linear(features, config.latent)
        self.classifier = nn.Sequential(
            nn.Linear(config.latent, config.hidden), nn.ReLU(inplace=True), nn.Linear(config.hidden, config.classes)
        )
        self.decoder = Decoder(config)
        self.score = RejectionScore(config.classes, config.latent)
        self.register_buffer("temperature", torch.ones(()))
        windowed = config.window and config.pose
        self.register_buffer("frame", round_window(config.size) if windowed else None, persistent=False)
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

    def find_angle(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Doubt | None]:
        """Image to (cos θ [N], sin θ [N], pose's class logits, angle bins, doubt); without a pose trunk θ is 0."""
        if self.pose is None:
            zero = image.flatten(1).sum(1) * 0.0
            return zero + 1.0, zero, None, None, None
        pose_logits, bins = self.pose(image)
        cos, sin, doubt = self.pose.read(bins.float().detach())
        return cos, sin, pose_logits, bins, doubt

    def forward(self, image: Tensor) -> Output:
        """The deterministic pass of inference: the content is mu, the class weights are those of the raw logits."""
        image = self.see(image)
        cos, sin, pose_logits, bins, doubt = self.find_angle(image)
        upright = turn(image, cos, -sin, self.config.fill) if self.pose is not None else image
        features = self.encoder(upright)
        mu, logvar = self.mu(features), self.logvar(features)
        logits = self.combine(self.classifier(mu), pose_logits)
        reconstruction = self.decoder(mu, logits.softmax(1)).sigmoid()
        return Output(logits, mu, logvar, None, upright, reconstruction, cos, sin, pose_logits, bins, doubt)

    def training_pass(self, image: Tensor, labels: Tensor, seed: int, offset: int) -> Output:
        """The sampling pass: the content is drawn from the posterior, the decoder is told the true class.

        `seed` and `offset` fix the noise of the content; `reconstruction` holds logits.
        """
        image = self.see(image)
        cos, sin, pose_logits, bins, doubt = self.find_angle(image)
        upright = image
        if self.pose is not None:
            generator = torch.Generator(image.device).manual_seed(seed * 1_000_003 + offset)
            error = torch.randn(len(image), generator=generator, device=image.device) * math.radians(POSE_NOISE_DEG)
            noisy_cos = cos * error.cos() - sin * error.sin()
            noisy_sin = sin * error.cos() + cos * error.sin()
            upright = turn(image, noisy_cos, -noisy_sin, self.config.fill)
        features = self.encoder(upright)
        mu, logvar = self.mu(features).float(), self.logvar(features).float().clamp(-10.0, 5.0)
        content, kl = reparameterize(mu, logvar, seed, offset)
        logits = self.combine(self.classifier(mu), pose_logits)
        onehot = F.one_hot(labels, self.config.classes).to(content.dtype)
        reconstruction = self.decoder(content, onehot)
        return Output(logits, mu, logvar, kl, upright, reconstruction, cos, sin, pose_logits, bins, doubt)

    @staticmethod
    def combine(content_logits: Tensor, pose_logits: Tensor | None) -> Tensor:
        """Both readers of the image vote: the one that saw it turned back, and the one that saw it as it came."""
        return content_logits if pose_logits is None else content_logits + pose_logits
