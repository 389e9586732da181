"""Settings, and the schedule that follows from them."""

from __future__ import annotations

import pytest

from vae_edge.data import rotation_range
from vae_edge.errors import ConfigError
from vae_edge.training.config import TrainConfig, warmup_cosine_lr


@pytest.mark.parametrize(
    "options", [{"rotation": "left"}, {"rotation": "400"}, {"holdout": 1.0}, {"batch": 1}, {"seed": -1}]
)
def test_settings_out_of_range_are_refused(options: dict):
    with pytest.raises(ConfigError):
        TrainConfig(**options)


def test_rotation_ranges_and_the_schedule():
    assert [rotation_range(r) for r in ("none", "full", "30")] == [0.0, 180.0, 30.0]
    rates = [warmup_cosine_lr(step, 100, 1.0, 0.15) for step in range(100)]
    assert max(rates) == pytest.approx(1.0, abs=0.02) and rates.index(max(rates)) in (14, 15, 16)
    assert rates[0] < 0.05 and rates[-1] < 0.01
