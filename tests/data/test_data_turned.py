from __future__ import annotations

import math
import time

import numpy as np
import pytest
from PIL import Image
from PIL.Image import Resampling

from vae_edge.data import LabelledImages, rotated
from vae_edge.data.turned import wrap_deg
from vae_edge.errors import ConfigError

torch = pytest.importorskip("torch", reason="augmentation is PyTorch's")
from vae_edge.data.augment import NUMBERS, affine_augment  # noqa: E402
from vae_edge.ops.rotate import rotate  # noqa: E402


def marked(count: int = 300, size: int = 28, channels: int = 1) -> LabelledImages:
    """Upright images: a bright mark near the top, in the middle."""
    images = np.zeros((count, size, size, channels), dtype=np.uint8)
    images[:, 4:7, size // 2 - 1 : size // 2 + 1] = 255
    return LabelledImages(images, np.arange(count, dtype=np.int64) % 2, ("a", "b"))


def angle_of_mark(image: np.ndarray) -> float:
    """Where the mark stands, in degrees counter-clockwise from the top, by the centre of mass."""
    weight = image.astype(float).sum(axis=-1)
    middle = (len(weight) - 1) / 2
    right = weight.sum(axis=0) @ (np.arange(len(weight)) - middle)
    down = weight.sum(axis=1) @ (np.arange(len(weight)) - middle)
    return math.degrees(math.atan2(-right, -down))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_angle_said_is_the_angle_seen(channels: int) -> None:
    data = rotated(marked(channels=channels))
    seen = np.array([angle_of_mark(image) for image in data.images])
    assert np.abs(wrap_deg(seen - data.angles_deg)).max() < 1.5
    assert data.angles_deg.dtype == np.float32 and data.images.dtype == np.uint8


def test_angles_are_uniform_within_the_range_and_repeat_for_a_seed() -> None:
    data = marked(4000)
    for range_deg in (30.0, 180.0):
        angles = rotated(data, range_deg).angles_deg
        assert np.abs(angles).max() <= range_deg
        counts = np.histogram(angles, 10, (-range_deg, range_deg))[0]
        assert counts.sum() == 4000 and np.abs(counts / 400 - 1).max() < 0.2
    first, again, other = (rotated(marked(), seed=seed) for seed in (1, 1, 2))
    assert (first.images == again.images).all() and (first.angles_deg == again.angles_deg).all()
    assert (first.angles_deg != other.angles_deg).any()


def test_turning_again_adds_up_and_no_range_turns_nothing() -> None:
    once = rotated(marked())
    twice = rotated(once, seed=9)
    assert twice.angles_deg.max() <= 180 and twice.angles_deg.min() > -180
    seen = np.array([angle_of_mark(image) for image in twice.images])
    assert np.abs(wrap_deg(seen - twice.angles_deg)).max() < 3
    assert (rotated(marked(), 0).images == marked().images).all()
    for wrong in (-1, 181, float("nan")):
        with pytest.raises(ConfigError, match="0 to 180"):
            rotated(marked(), wrong)


def test_angles_wrap_into_the_half_open_circle() -> None:
    assert wrap_deg(np.array([0.0, 180, -180, 190, -190, 540])).tolist() == [0, 180, 180, -170, 170, 180]


def test_sixty_thousand_images_turn_in_seconds() -> None:
    started = time.perf_counter()
    rotated(marked(6000))
    assert time.perf_counter() - started < 2  # a tenth of 20 s; about 0.2 s on a quiet machine


def tensors(count: int = 64, channels: int = 1) -> torch.Tensor:
    return torch.tensor(marked(count, channels=channels).images).permute(0, 3, 1, 2).float() / 255


def test_augmentation_tells_the_angle_that_it_turned_by() -> None:
    images, angle_rad = affine_augment(tensors(), torch.Generator().manual_seed(0), 180)
    pages = (images * 255).permute(0, 2, 3, 1).numpy()
    seen = np.array([angle_of_mark(page) for page in pages])
    assert np.abs(wrap_deg(seen - np.degrees(angle_rad.numpy()))).max() < 1
    assert float(angle_rad.max()) > 2 and float(angle_rad.min()) < -2


def test_turn_in_radians_is_pillows_rotate() -> None:
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
    draws = torch.rand(200, NUMBERS, generator=torch.Generator().manual_seed(3)).T * 2 - 1
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
