"""Presets: a network is a name and a few numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from vae_edge.errors import ConfigError

MIN_SIZE, MAX_SIZE = 28, 64
LEAST_BINS = 12  # of the angle: with fewer, no second angle lies apart from the best one


@dataclass(frozen=True)
class ModelConfig:
    """What fixes the shape of an angle VAE.

    `fill`, from 0 to 1, is what comes in from outside the frame when an image is turned.
    `widths` are the channels of the full, the half and the quarter resolution; further halvings, down to at most
    4 pixels, keep the last width. `pose_widths` are those of the pose trunk; without rotation there is none.
    With `window` a turning network sees the circle inscribed in the frame alone: what is in a photograph's corners
    then does not matter, nor what comes into them when it is turned.
    """

    preset: str = "small"
    classes: int = 10
    size: int = 28
    channels: int = 1
    pose: bool = True
    pose_widths: tuple[int, ...] = (16, 32, 48)
    widths: tuple[int, ...] = (16, 32, 48)
    latent: int = 24
    hidden: int = 64
    angle_bins: int = 36
    fill: float = 0.0
    window: bool = False

    def __post_init__(self) -> None:
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise ConfigError(
                f"image size {self.size} is out of range: square images of {MIN_SIZE} to {MAX_SIZE} pixels"
            )
        if self.channels not in (1, 3):
            raise ConfigError(f"{self.channels} image channels: expected 1 (grey) or 3 (colour)")
        if self.classes < 2:
            raise ConfigError(f"{self.classes} class: a classifier needs at least two")
        for name in ("pose_widths", "widths"):
            widths = getattr(self, name)
            if len(widths) < 2 or any(width < 16 or width % 16 for width in widths):
                raise ConfigError(f"{name} {widths}: expected two or more multiples of 16")
        if self.latent < 2 or self.hidden < 1:
            raise ConfigError(f"latent {self.latent} and hidden {self.hidden}: expected at least 2 and 1")
        if not 0 <= self.fill <= 1:
            raise ConfigError(f"fill {self.fill}: expected a number from 0 to 1")
        if self.angle_bins < LEAST_BINS:
            raise ConfigError(f"{self.angle_bins} angle bins: expected at least {LEAST_BINS}")

    def resolutions(self) -> list[int]:
        """The sides of the feature maps, from the image's to the last, which is at most 4: 28, 14, 7, 4."""
        sides = [self.size]
        while sides[-1] > 4:
            sides.append((sides[-1] + 1) // 2)
        return sides

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The configuration that a checkpoint stored. Unknown or missing names are a ConfigError."""
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            odd = sorted(set(values) ^ names)
            raise ConfigError(f"model configuration does not fit this version: {', '.join(odd)} unknown or missing")
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})


PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig("tiny", pose_widths=(16, 16, 16), widths=(16, 16, 16), latent=16, hidden=32),
    "small": ModelConfig("small"),
    "base": ModelConfig("base", pose_widths=(32, 64, 96), widths=(32, 64, 128), latent=32, hidden=128),
}


def create_config(preset: str, **overrides: Any) -> ModelConfig:
    """A preset with some numbers changed, as in `create_config("small", classes=26, size=32)`.

    Raises:
        ConfigError: for an unknown preset, an unknown name or a value out of range.
    """
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}: expected one of {', '.join(PRESETS)}")
    unknown = set(overrides) - {field.name for field in fields(ModelConfig)}
    if unknown:
        raise ConfigError(f"unknown model option {', '.join(sorted(unknown))}")
    return replace(PRESETS[preset], **overrides)
