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
POSE_NOISE_DEG = 4.0  # spread of the error added to the angle in training, so that the encoder bears small ones


def unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3×3 convolution, batch normalization, ReLU: folds into one fused kernel and one int8 layer."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def trunk(channels: int, widths: tuple[int, ...], sides: list[int]) -> nn.Sequential:
    """Image [N, channels, S, S] to features [N, widths[-1] · s · s] with s = sides[-1]."""
    layers = [unit(channels, widths[0])]
    width = widths[0]
    for level in range(1, len(sides)):
        wider = widths[min(level, len(widths) - 1)]
        layers.append(unit(width, wider, stride=2))
        if level < len(widths):
            layers.append(unit(wider, wider))
        width = wider
    return nn.Sequential(*layers, nn.Flatten())


class PoseTrunk(nn.Module):
    """Image to class logits and to logits of angle bins; bin k is centred on 2πk / K radians."""

    centres: Tensor
    window: Tensor

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
        near = torch.minimum(apart, count - apart) <= WINDOW_BINS
        self.register_buffer("centres", index * (2 * math.pi / count), persistent=False)
        self.register_buffer("window", near.float(), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image [N, C, S, S] to class logits [N, classes] and bin logits [N, bins]."""
        features = self.trunk(image)
        return self.classes(features), self.bins(features)

    def read(self, bins: Tensor) -> tuple[Tensor, Tensor]:
        """Bin logits [N, K] to (cos θ, sin θ), each [N]: the circular mean of the bins around the best one."""
        weight = bins.softmax(1) * self.window.index_select(0, bins.argmax(1))
        cos = weight @ self.centres.cos()
        sin = weight @ self.centres.sin()
        length = torch.sqrt(cos * cos + sin * sin + 1e-12)
        return cos / length, sin / length


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
            x = step(F.interpolate(x, scale_factor=2.0, mode="nearest")[:, :, :side, :side])
        return x


@dataclass
class Output:
    """What one pass gives: class logits [N, K], posterior, upright image seen and its reconstruction, angle."""

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


class AngleVAE(nn.Module):
    """Pose, image turned back, posterior of the content, classes, decoder. Images are float [N, C, S, S] in [0, 1].

    Angles are radians, counter-clockwise as displayed; upright is 0. No gradient runs through the turning.
    """

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
        nn.init.zeros_(self.logvar.weight)
        nn.init.constant_(self.logvar.bias, -2.0)

    def find_angle(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Image to (cos θ [N], sin θ [N], pose's class logits, angle bins); without a pose trunk θ is 0."""
        if self.pose is None:
            zero = image.flatten(1).sum(1) * 0.0
            return zero + 1.0, zero, None, None
        pose_logits, bins = self.pose(image)
        cos, sin = self.pose.read(bins.float().detach())
        return cos, sin, pose_logits, bins

    def forward(self, image: Tensor) -> Output:
        """The deterministic pass of inference: the content is mu, the class weights are the probabilities."""
        cos, sin, pose_logits, bins = self.find_angle(image)
        upright = turn(image, cos, -sin, self.config.fill) if self.pose is not None else image
        features = self.encoder(upright)
        mu, logvar = self.mu(features), self.logvar(features)
        logits = self.combine(self.classifier(mu), pose_logits)
        reconstruction = self.decoder(mu, logits.softmax(1)).sigmoid()
        return Output(logits, mu, logvar, None, upright, reconstruction, cos, sin, pose_logits, bins)

    def training_pass(self, image: Tensor, labels: Tensor, seed: int, offset: int) -> Output:
        """The sampling pass: the content is drawn from the posterior, the decoder is told the true class.

        `seed` and `offset` fix the noise of the content; `reconstruction` holds logits.
        """
        cos, sin, pose_logits, bins = self.find_angle(image)
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
        return Output(logits, mu, logvar, kl, upright, reconstruction, cos, sin, pose_logits, bins)

    @staticmethod
    def combine(content_logits: Tensor, pose_logits: Tensor | None) -> Tensor:
        """Both readers of the image vote: the one that saw it turned back, and the one that saw it as it came."""
        return content_logits if pose_logits is None else content_logits + pose_logits
