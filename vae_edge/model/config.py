"""Shapes of networks: a preset is a name and a few numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from vae_edge.errors import ConfigError
from vae_edge.spec import MAX_ANGLE_BINS, MAX_BLOCKS, MAX_CLASSES, MAX_HIDDEN, MAX_SIZE, MAX_WIDTH, MIN_SIZE

MIN_ANGLE_BINS = 12  # with fewer bins there is no room for a second angle outside the best one's window

SCHEMA_1_MODEL = {"pose": "orientation", "pose_widths": "orientation_widths", "window": "circular_mask"}
"""Fields of `ModelConfig` in files of schema 1, and what they are called now."""


@dataclass(frozen=True)
class ModelConfig:
    """The shape of an angle VAE.

    Attributes:
        preset: the preset that the other numbers began as.
        classes: number of classes.
        size: side of the square images, in pixels.
        channels: 1 (grey) or 3 (colour).
        orientation: whether there is an orientation encoder. A network for upright images has none.
        orientation_widths: channels of the orientation encoder, as `widths`.
        widths: channels at full, half and quarter resolution. Further halvings, down to 4 pixels or fewer, keep the
            last width.
        latent: size of the code.
        hidden: hidden units of the classifier.
        angle_bins: bins of the angle, around the whole circle.
        fill: padding value, 0 to 1, for what lies outside the frame of a rotated image.
        circular_mask: set the pixels outside the inscribed circle to `fill`. The corners of a photograph then do not
            matter, nor what rotation brings into them.
    """

    preset: str = "small"
    classes: int = 10
    size: int = 28
    channels: int = 1
    orientation: bool = True
    orientation_widths: tuple[int, ...] = (16, 32, 48)
    widths: tuple[int, ...] = (16, 32, 48)
    latent: int = 24
    hidden: int = 64
    angle_bins: int = 36
    fill: float = 0.0
    circular_mask: bool = False

    def __post_init__(self) -> None:
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise ConfigError(
                f"image size {self.size} is out of range: square images of {MIN_SIZE} to {MAX_SIZE} pixels"
            )
        if self.channels not in (1, 3):
            raise ConfigError(f"{self.channels} image channels: expected 1 (grey) or 3 (colour)")
        if self.classes < 2:
            raise ConfigError(f"{self.classes} class: a classifier needs at least two")
        if self.classes > MAX_CLASSES:
            raise ConfigError(f"{self.classes} classes: expected at most {MAX_CLASSES}")
        for name in ("orientation_widths", "widths"):
            widths = getattr(self, name)
            if not 2 <= len(widths) <= MAX_BLOCKS or any(not 16 <= w <= MAX_WIDTH or w % 16 for w in widths):
                raise ConfigError(f"{name} {widths[:8]}: expected 2 to {MAX_BLOCKS} multiples of 16 up to {MAX_WIDTH}")
        if not 2 <= self.latent <= MAX_WIDTH or not 1 <= self.hidden <= MAX_HIDDEN:
            raise ConfigError(
                f"latent {self.latent} and hidden {self.hidden}: expected 2 to {MAX_WIDTH} and 1 to {MAX_HIDDEN}"
            )
        if not 0 <= self.fill <= 1:
            raise ConfigError(f"fill {self.fill}: expected a number from 0 to 1")
        if not MIN_ANGLE_BINS <= self.angle_bins <= MAX_ANGLE_BINS:
            raise ConfigError(f"{self.angle_bins} angle bins: expected {MIN_ANGLE_BINS} to {MAX_ANGLE_BINS}")

    def resolutions(self) -> list[int]:
        """Sides of the feature maps, halved (rounded up) from the image's side down to at most 4: 28, 14, 7, 4."""
        sides = [self.size]
        while sides[-1] > 4:
            sides.append((sides[-1] + 1) // 2)
        return sides

    @classmethod
    def from_dict(cls, values: Any) -> ModelConfig:
        """Read the configuration that a checkpoint of schema 1 or 2 stored. Anything else is a ConfigError."""
        return cls(**checked_fields(cls, rename_keys(values, SCHEMA_1_MODEL), "model configuration"))


def rename_keys(values: Any, names: Mapping[str, str]) -> Any:
    """Rename keys of an object that JSON held. What is not an object comes back as it is, for a later check."""
    return {names.get(key, key): value for key, value in values.items()} if isinstance(values, dict) else values


def checked_fields(cls: type, values: Any, what: str, complete: bool = True) -> dict[str, Any]:
    """Check the fields of a dataclass that JSON stored, and turn lists into tuples.

    Args:
        cls: its fields are bool, int, float, str, tuples of int or str, one of these or None, or other dataclasses.
        values: what JSON held.
        what: the configuration's name in the message.
        complete: whether every field must be there.

    Raises:
        ConfigError: `values` is not an object, a name is unknown or missing, or a value has the wrong type.
    """
    hints = get_type_hints(cls)
    if not isinstance(values, dict):
        raise ConfigError(f"{what} should be an object, but a {type(values).__name__} came")
    odd = sorted(set(values) ^ set(hints) if complete else set(values) - set(hints))
    if odd:
        raise ConfigError(f"{what} does not fit this version: {', '.join(odd)[:200]} unknown or missing")
    found = {}
    for name, hint in ((name, hint) for name, hint in hints.items() if name in values):
        value = tuple(values[name]) if isinstance(values[name], list) else values[name]
        if isinstance(hint, type) and is_dataclass(hint):
            value = hint(**checked_fields(hint, value, f"{what}, {name}", complete))
        elif not any(_is_of(value, kind) for kind in (get_args(hint) if isinstance(hint, UnionType) else [hint])):
            raise ConfigError(f"{what}: {name} is {str(value)[:40]!r}, which is of another type than it should be")
        found[name] = value
    return found


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value has a field's type. An int is also a float; a bool is neither."""
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_of(item, get_args(kind)[0]) for item in value)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig("tiny", orientation_widths=(16, 16, 16), widths=(16, 16, 16), latent=16, hidden=32),
    "small": ModelConfig("small"),
    "base": ModelConfig("base", orientation_widths=(32, 64, 96), widths=(32, 64, 128), latent=32, hidden=128),
}


def create_config(preset: str, **overrides: Any) -> ModelConfig:
    """Take a preset and override some of its numbers, as in `create_config("small", classes=26, size=32)`.

    Raises:
        ConfigError: for an unknown preset, an unknown name or a value out of range.
    """
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}: expected one of {', '.join(PRESETS)}")
    unknown = set(overrides) - {field.name for field in fields(ModelConfig)}
    if unknown:
        raise ConfigError(f"unknown model option {', '.join(sorted(unknown))}")
    return replace(PRESETS[preset], **overrides)
