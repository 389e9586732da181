from __future__ import annotations

import math

import numpy as np
import pytest
from data_makers import angle_of_mark, marked
from PIL import Image
from PIL.Image import Resampling

from vae_edge.errors import ConfigError
from vae_edge.metrics import wrap_degrees

torch = pytest.importorskip("torch", reason="augmentation is PyTorch's")
from vae_edge.ops.rotate import (  # noqa: E402
    RANDOMS_PER_IMAGE,
    affine_augment,
    rotate,
)


def tensors(count: int = 64, channels: int = 1) -> torch.Tensor:
    return torch.tensor(marked(count, channels=channels).images).permute(0, 3, 1, 2).float() / 255


def test_augmentation_tells_the_angle_that_it_rotated_by() -> None:
    images, angle_rad = affine_augment(tensors(), torch.Generator().manual_seed(0), 180)
    pages = (images * 255).permute(0, 2, 3, 1).numpy()
    seen = np.array([angle_of_mark(page) for page in pages])
    assert np.abs(wrap_degrees(seen - np.degrees(angle_rad.numpy()))).max() < 1
    assert float(angle_rad.max()) > 2 and float(angle_rad.min()) < -2


def test_rotation_in_radians_is_pillows_rotate() -> None:
    image = np.zeros((28, 28), dtype=np.uint8)
    image[5:12, 8:20] = np.linspace(90, 255, 12)
    smooth = Image.fromarray(image).resize((14, 14), Resampling.BOX).resize((28, 28), Resampling.BICUBIC)
    for degrees in (-150, -20, 33, 90):
        expected = np.asarray(smooth.rotate(degrees, Resampling.BILINEAR)).astype(float)
        page = torch.tensor(np.asarray(smooth), dtype=torch.float32)[None, None]
        angle = torch.tensor([math.radians(degrees)])
        result = rotate(page, angle.cos(), angle.sin())[0, 0].numpy()
        assert np.abs(result - expected).max() <= 1.5


def centre(images: torch.Tensor) -> torch.Tensor:
    """Centre of mass, (x, y) in pixels from the middle, float [N, 2]."""
    weight = images.sum(dim=1)
    place = torch.arange(weight.shape[-1]) - (weight.shape[-1] - 1) / 2
    mass = weight.sum(dim=(1, 2))
    return (
        torch.stack(((weight.sum(dim=1) * place).sum(dim=1), (weight.sum(dim=2) * place).sum(dim=1)), dim=1)
        / mass[:, None]
    )


def test_shifts_are_in_pixels_and_within_their_range() -> None:
    still = tensors(500)
    moved, angle_rad = affine_augment(still, torch.Generator().manual_seed(0), 0, shift=2 / 28)
    shift = centre(moved) - centre(still)
    assert float(angle_rad.abs().max()) == 0
    assert float(shift.abs().max()) <= 2.01 and float(shift.min()) < -1.8 and float(shift.max()) > 1.8


def test_scales_change_the_area_by_their_square() -> None:
    still = torch.zeros(300, 1, 28, 28)
    still[:, :, 8:20, 8:20] = 1
    grown, _ = affine_augment(still, torch.Generator().manual_seed(0), 0, scale=0.2)
    side = (grown.sum(dim=(1, 2, 3)) / 144).sqrt()
    assert 0.79 < float(side.min()) < 0.85 and 1.15 < float(side.max()) < 1.21


def test_shear_moves_the_top_and_leaves_the_middle() -> None:
    still = tensors(300)
    sheared, _ = affine_augment(still, torch.Generator().manual_seed(0), 0, shear_deg=20)
    shift = centre(sheared) - centre(still)
    height = 13.5 - 5  # how far above the middle the mark stands
    assert float(shift[:, 1].abs().max()) < 0.1
    assert float(shift[:, 0].abs().max()) == pytest.approx(height * math.tan(math.radians(20)), rel=0.05)


def test_all_together_is_the_product_of_its_parts_on_a_far_point() -> None:
    """Scale and turn leave the mark's distance from the middle scaled, wherever the shift then moves it."""
    still = tensors(200)
    changed, angle_rad = affine_augment(still, torch.Generator().manual_seed(3), 180, scale=0.1, shift=2 / 28)
    draws = torch.rand(200, RANDOMS_PER_IMAGE, generator=torch.Generator().manual_seed(3)).T * 2 - 1
    size, shift = 1 + draws[1] * 0.1, draws[3:5].T * 2
    x, y = centre(still).T
    cos, sin = angle_rad.cos(), angle_rad.sin()
    expected = torch.stack(((x * cos + y * sin) * size, (-x * sin + y * cos) * size), dim=1) + shift
    inside = expected.abs().max(dim=1).values < 11  # nothing of the mark is cut off
    assert int(inside.sum()) > 100
    assert float((centre(changed) - expected)[inside].abs().max()) < 0.15


def test_augmentation_repeats_for_a_generator_and_keeps_the_dtype() -> None:
    first, again = (affine_augment(tensors(), torch.Generator().manual_seed(5), 90, scale=0.1)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert affine_augment(tensors().double(), None, 10)[0].dtype == torch.float64


@pytest.mark.parametrize(
    "wrong",
    [{"rotation_deg": 181}, {"scale": 1}, {"shear_deg": 90}, {"shift": -1}, {"elastic": -0.1}, {"thickness": 2}],
)
def test_augmentation_of_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="Augmentation takes"):
        affine_augment(tensors(2), None, **{"rotation_deg": 0, **wrong})
