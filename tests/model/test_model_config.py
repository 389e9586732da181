"""Presets and the limits of a network's shape."""

from __future__ import annotations

import pytest

from vae_edge.errors import ConfigError
from vae_edge.model import ModelConfig, create_config


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"size": 27}, "27×27 is out of range: 28 to 224"),
        ({"size": (225, 64)}, r"225×64 \(height × width\) is out of range"),
        ({"channels": 2}, "channels"),
        ({"classes": 1}, "at least two"),
        ({"widths": (16, 20)}, "multiples of 16"),
        ({"angle_bins": 4}, "angle bins"),
        ({"depth": 3}, "depth"),
    ],
)
def test_a_configuration_out_of_range_is_refused(options: dict, word: str):
    with pytest.raises(ConfigError, match=word):
        create_config("small", **options)


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="tiny, small, base"):
        create_config("huge")


def test_a_configuration_survives_json():
    config = create_config("base", classes=3)
    stored = {**vars(config), "widths": list(config.widths), "orientation_widths": list(config.orientation_widths)}
    assert ModelConfig.from_dict(stored) == config
    with pytest.raises(ConfigError, match="latent"):
        ModelConfig.from_dict({name: value for name, value in stored.items() if name != "latent"})
