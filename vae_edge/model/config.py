"""Shapes of networks: a preset is a name and a few numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from vae_edge.errors import ConfigError
from vae_edge.spec import (
    MAX_ANGLE_BINS,
    MAX_BLOCKS,
    MAX_CLASSES,
    MAX_HIDDEN,
    MAX_SIZE,
    MAX_WIDTH,
    MIN_SIZE,
    Size,
    as_size,
    height_and_width,
    size_text,
)

MIN_ANGLE_BINS = 12  # with fewer bins there is no room for a second angle outside the best one's window

MAX_TRUNK_PIXELS = 40 * 40  # of an image that the stem does not halve
MAX_HALVED_PIXELS = 128 * 128  # of an image that it halves once; others it halves twice
MAX_STEM_HALVINGS = 2
HEADS = ("code", "pooled", "code+pooled")
MAX_POOLED = 8  # rows and columns of the feature maps that are pooled, at most
BACKBONE = re.compile(r"(?:timm|torchvision)/[A-Za-z0-9_.\-]{1,100}", re.ASCII)
MAX_DECODED_PIXELS = 32 * 32  # of a decoder whose cells become 4×4 pixels, not 8×8

SCHEMA_1_MODEL = {"pose": "orientation", "pose_widths": "orientation_widths", "window": "circular_mask"}
"""Fields of `ModelConfig` in files of schema 1, and what they are called now."""
EARLIER_MODEL = {"head": "code", "stem_halvings": None, "backbone": None}
"""Fields that earlier files do not have, and what they mean there."""


@dataclass(frozen=True)
class ModelConfig:
    """The shape of an angle VAE.

    Attributes:
        preset: the preset that the other numbers began as.
        classes: number of classes.
        size: of the images in pixels: the side of a square, or (height, width).
        channels: 1 (grey) or 3 (colour).
        orientation: whether there is an orientation encoder. A network for upright images has none.
        orientation_widths: channels of the orientation encoder, as `widths`.
        widths: channels of the encoder's trunk at full, half and quarter resolution, and so on. Further halvings, down
            to 4 pixels or fewer, keep the last width. For larger images the stem halves before that (`stem_halvings`).
        latent: size of the code.
        hidden: hidden units of the classifier of the code.
        angle_bins: bins of the angle, around the whole circle.
        fill: padding value, 0 to 1, for what lies outside the frame of a rotated image.
        head: `code`: two linear layers classify the latent mean. `pooled`: one linear layer classifies the average pool
            of the encoder's last feature maps; the encoder then has one convolution a resolution, and ends at 8 pixels.
            Where a thing is in the frame tells a drawing's class; a texture's it does not. `code+pooled`: the network
            of `code`, whose class logits are the sum of its classifier's and those of a linear layer on the average
            pool of the encoder's last feature maps.
        stem_halvings: how often the stem halves an image before the trunk, 0 to 2. None: not up to 40×40 pixels, once
            up to 128×128, else twice, so that the trunk works on at most 64×64 pixels. The decoder's image is halved
            as often.
        circular_mask: set the pixels outside the circle inscribed in the shorter side to `fill`. The corners of a
            photograph then do not matter, nor what rotation brings into them.
        backbone: a pretrained network in place of the encoder's and the orientation encoder's own convolutions:
            `timm/MODEL` or `torchvision/MODEL` (`vae_edge.model.backbone`). The head is then `pooled`, of `widths` only
            the decoder reads the first and the last, and `orientation_widths` are not used.
    """

    preset: str = "small"
    classes: int = 10
    size: Size = 28
    channels: int = 1
    orientation: bool = True
    orientation_widths: tuple[int, ...] = (16, 32, 48)
    widths: tuple[int, ...] = (16, 32, 48)
    latent: int = 24
    hidden: int = 64
    angle_bins: int = 36
    fill: float = 0.0
    circular_mask: bool = False
    head: str = "code"
    stem_halvings: int | None = None
    backbone: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.size, int):
            if len(self.size) != 2:
                raise ConfigError(f"image size {self.size}: expected the side of a square, or height and width")
            object.__setattr__(self, "size", as_size(*self.size))
        if not all(MIN_SIZE <= side <= MAX_SIZE for side in height_and_width(self.size)):
            raise ConfigError(
                f"image size {size_text(self.size)} is out of range: {MIN_SIZE} to {MAX_SIZE} pixels high and wide"
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
        if self.head not in HEADS:
            raise ConfigError(f"head {self.head!r}: expected one of {', '.join(HEADS)}")
        if self.backbone is not None:
            if not BACKBONE.fullmatch(self.backbone):
                raise ConfigError(f"backbone {self.backbone[:100]!r}: expected timm/MODEL or torchvision/MODEL")
            if self.head != "pooled":
                raise ConfigError(f"head {self.head!r} with a pretrained backbone: expected 'pooled'")
        if self.stem_halvings is not None and not 0 <= self.stem_halvings <= MAX_STEM_HALVINGS:
            raise ConfigError(f"stem_halvings {self.stem_halvings}: expected 0 to {MAX_STEM_HALVINGS}")
        if not MIN_ANGLE_BINS <= self.angle_bins <= MAX_ANGLE_BINS:
            raise ConfigError(f"{self.angle_bins} angle bins: expected {MIN_ANGLE_BINS} to {MAX_ANGLE_BINS}")

    @property
    def height(self) -> int:
        """Of the images, in pixels."""
        return height_and_width(self.size)[0]

    @property
    def width(self) -> int:
        """Of the images, in pixels."""
        return height_and_width(self.size)[1]

    @property
    def halvings(self) -> int:
        """`stem_halvings`, or what the size says."""
        if self.stem_halvings is not None:
            return self.stem_halvings
        pixels = self.height * self.width
        return 0 if pixels <= MAX_TRUNK_PIXELS else 1 if pixels <= MAX_HALVED_PIXELS else 2

    @property
    def decoded_size(self) -> tuple[int, int]:
        """Height and width of the decoder's image: the image's, halved as the stem does."""
        return _halved((self.height, self.width), self.halvings)

    @property
    def decoder_block(self) -> int:
        """Pixels of the decoder's image that a cell of its grid becomes, each way."""
        height, width = self.decoded_size
        return 4 if height * width <= MAX_DECODED_PIXELS else 8

    @property
    def decoder_grid(self) -> tuple[int, int]:
        """Rows and columns of the decoder's grid."""
        height, width = self.decoded_size
        return -(-height // self.decoder_block), -(-width // self.decoder_block)

    @property
    def pooled(self) -> bool:
        """Whether the classifier reads pooled feature maps alone."""
        return self.head == "pooled"

    @property
    def second_classifier(self) -> bool:
        """Whether a second classifier reads pooled feature maps."""
        return self.head == "code+pooled"

    def resolutions(self, pooled: bool = False) -> list[tuple[int, int]]:
        """Heights and widths of a trunk's feature maps, halved (rounded up) until both are at most 4.

        28, 14, 7, 4 for an image of 28×28; 48, 24, 12, 6, 3 for one of 96×96. An encoder whose maps are pooled
        (`pooled`) needs fine textures, and what is pooled must have seen a part of the image only: its trunk begins one
        halving earlier, and ends where both are at most 8. 96, 48, 24, 12, 6 for an image of 96×96.
        """
        sizes = [_halved((self.height, self.width), self._halvings_before(pooled))]
        while max(sizes[-1]) > (MAX_POOLED if pooled else 4):
            sizes.append(_halved(sizes[-1], 1))
        return sizes

    def convolutions(self, widths: tuple[int, ...], pooled: bool = False) -> list[tuple[int, int]]:
        """The 3×3 convolutions of a backbone in order, each (output channels, stride).

        The stem, one convolution at the trunk's full resolution (two for the largest images). Then for each further
        resolution one that halves, and, unless `pooled`, a second one while the channels still grow by level.
        """
        before = self._halvings_before(pooled)
        layers = [(widths[0], 2 if before else 1)]
        layers += [(widths[0], 2)] * (before - 1)
        for level in range(1, len(self.resolutions(pooled))):
            width = widths[min(level, len(widths) - 1)]
            layers += [(width, 2), (width, 1)] if level < len(widths) and not pooled else [(width, 2)]
        return layers

    def _halvings_before(self, pooled: bool) -> int:
        """Halvings of the image before the trunk of a backbone."""
        return max(0, self.halvings - 1) if pooled else self.halvings

    def feature_layer(self, pooled: bool = False) -> int:
        """Index of the convolution whose feature maps are averaged, for the anomaly score and a pooled classifier.

        The last at half the trunk's size; where `pooled`, the last of all.
        """
        return len(self.convolutions(self.widths, True)) - 1 if pooled else 2 + max(0, self.halvings - 1)

    def features(self, widths: tuple[int, ...], pooled: bool = False) -> int:
        """Numbers that a backbone gives for an image: channels, rows and columns of its last feature maps."""
        rows, columns = self.resolutions(pooled)[-1]
        return self.convolutions(widths, pooled)[-1][0] * rows * columns

    @classmethod
    def from_dict(cls, values: Any) -> ModelConfig:
        """Read the configuration that a checkpoint of schema 1 or 2 stored. Anything else is a ConfigError."""
        if isinstance(values, dict):
            values = {**EARLIER_MODEL, **values}
        config = cls(**checked_fields(cls, rename_keys(values, SCHEMA_1_MODEL), "model configuration"))
        if config.stem_halvings is None:  # of a version that did not store it
            pixels = config.height * config.width
            config = replace(config, stem_halvings=next(k for k in (0, 1, 2) if k == 2 or pixels <= 4**k * 64 * 64))
        return config


def _halved(size: tuple[int, int], times: int) -> tuple[int, int]:
    return -(-size[0] // 2**times), -(-size[1] // 2**times)


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
    "large": ModelConfig("large", orientation_widths=(48, 96, 144), widths=(48, 96, 192), latent=48, hidden=192),
}

LARGE_IMAGE_WIDTHS = {
    "tiny": ((16, 16, 32, 32), (16, 16, 32, 32)),
    "small": ((16, 32, 64, 96), (16, 32, 64, 96)),
    "base": ((32, 64, 96, 128), (32, 64, 128, 192)),
    "large": ((48, 96, 144, 192), (48, 96, 192, 256)),
}
"""`orientation_widths` and `widths` of the presets for images with a stem that halves: four levels, not three."""

POOLED_WIDTHS = {
    "tiny": (16, 16, 32, 64),
    "small": (16, 32, 64, 128),
    "base": (32, 64, 128, 192),
    "large": (48, 96, 192, 256),
}
"""`widths` of the presets where the head is `pooled`; the orientation encoder, which then gives the angle alone, keeps
the preset's three levels."""


def create_config(preset: str, **overrides: Any) -> ModelConfig:
    """Take a preset and override some of its numbers, as in `create_config("small", classes=26, size=32)`.

    With a pretrained backbone the head is `pooled`. Where the stem halves the image the preset has the channels of
    `LARGE_IMAGE_WIDTHS`, and where feature maps are pooled those of `POOLED_WIDTHS`.

    Raises:
        ConfigError: for an unknown preset, an unknown name or a value out of range.
    """
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}: expected one of {', '.join(PRESETS)}")
    unknown = set(overrides) - {field.name for field in fields(ModelConfig)}
    if unknown:
        raise ConfigError(f"unknown model option {', '.join(sorted(unknown))}")
    if overrides.get("backbone") is not None:
        overrides = {"head": "pooled", **overrides}
    config = replace(PRESETS[preset], **overrides)
    if config.pooled:
        config = replace(config, **{"widths": POOLED_WIDTHS[preset], **overrides})
    elif config.halvings:
        orientation, encoder = LARGE_IMAGE_WIDTHS[preset]
        config = replace(config, **{"orientation_widths": orientation, "widths": encoder, **overrides})
    return replace(config, stem_halvings=config.halvings)  # what a file stores does not hang on a later rule
