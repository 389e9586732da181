from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from data_makers import angle_of_mark, marked
from PIL import Image
from PIL.Image import Resampling

from vae_edge.errors import ConfigError
from vae_edge.metrics import wrap_degrees

torch = pytest.importorskip("torch", reason="augmentation is PyTorch's")
from vae_edge.ops.rotate import rotate  # noqa: E402
from vae_edge.training.augment import PHOTOMETRIC, RANDOMS_PER_IMAGE, Augmentation, augment  # noqa: E402
from vae_edge.training.config import AUGMENTATIONS, DRAWING_COLORS, TrainConfig  # noqa: E402


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tensors(count: int = 64, channels: int = 1) -> torch.Tensor:
    return torch.tensor(marked(count, channels=channels).images).permute(0, 3, 1, 2).float() / 255


def test_augmentation_tells_the_angle_that_it_rotated_by() -> None:
    images, angle_rad = augment(tensors(), Augmentation(rotation_deg=180), seeded(0))
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
    moved, angle_rad = augment(still, Augmentation(rotation_deg=0, shift=2 / 28), seeded(0))
    shift = centre(moved) - centre(still)
    assert float(angle_rad.abs().max()) == 0
    assert float(shift.abs().max()) <= 2.01 and float(shift.min()) < -1.8 and float(shift.max()) > 1.8


def test_scales_change_the_area_by_their_square() -> None:
    still = torch.zeros(300, 1, 28, 28)
    still[:, :, 8:20, 8:20] = 1
    grown, _ = augment(still, Augmentation(rotation_deg=0, scale=0.2), seeded(0))
    side = (grown.sum(dim=(1, 2, 3)) / 144).sqrt()
    assert 0.79 < float(side.min()) < 0.85 and 1.15 < float(side.max()) < 1.21


def test_shear_moves_the_top_and_leaves_the_middle() -> None:
    still = tensors(300)
    sheared, _ = augment(still, Augmentation(rotation_deg=0, shear_deg=20), seeded(0))
    shift = centre(sheared) - centre(still)
    height = 13.5 - 5  # how far above the middle the mark stands
    assert float(shift[:, 1].abs().max()) < 0.1
    assert float(shift[:, 0].abs().max()) == pytest.approx(height * math.tan(math.radians(20)), rel=0.05)


def test_all_together_is_the_product_of_its_parts_on_a_far_point() -> None:
    """Scale and turn leave the mark's distance from the middle scaled, wherever the shift then moves it."""
    still = tensors(200)
    changed, angle_rad = augment(still, Augmentation(rotation_deg=180, scale=0.1, shift=2 / 28), seeded(3))
    draws = torch.rand(200, RANDOMS_PER_IMAGE, generator=seeded(3)).T * 2 - 1
    size, shift = 1 + draws[1] * 0.1, draws[3:5].T * 2
    x, y = centre(still).T
    cos, sin = angle_rad.cos(), angle_rad.sin()
    expected = torch.stack(((x * cos + y * sin) * size, (-x * sin + y * cos) * size), dim=1) + shift
    inside = expected.abs().max(dim=1).values < 11  # nothing of the mark is cut off
    assert int(inside.sum()) > 100
    assert float((centre(changed) - expected)[inside].abs().max()) < 0.15


def test_augmentation_repeats_for_a_generator_and_keeps_the_dtype() -> None:
    first, again = (augment(tensors(), Augmentation(rotation_deg=90, scale=0.1), seeded(5))[0] for _ in range(2))
    assert torch.equal(first, again)
    assert augment(tensors().double(), Augmentation(rotation_deg=10))[0].dtype == torch.float64


def noise(count: int = 64, channels: int = 3, height: int = 28, width: int = 28) -> torch.Tensor:
    """Images whose every pixel counts: blurred ones differ from sharp ones."""
    return torch.rand(count, channels, height, width, generator=seeded(9))


def test_a_fraction_of_the_images_keeps_its_sharpness() -> None:
    ranges = Augmentation(rotation_deg=10, scale=0.1, shear_deg=5, shift=0.1, elastic=0.05, identity=0.3)
    images = noise(1000, 1)
    sharpness = torch.linalg.vector_norm(augment(images, ranges, seeded())[0].diff(dim=3)[..., 4:-4], dim=(1, 2, 3))
    before = torch.linalg.vector_norm(images.diff(dim=3)[..., 4:-4], dim=(1, 2, 3))
    assert float((sharpness > 0.9 * before).float().mean()) == pytest.approx(0.3, abs=0.05)
    assert float((augment(images, Augmentation(rotation_deg=10), seeded())[0] == images).all((1, 2, 3)).sum()) == 0


def test_images_that_stay_sharp_are_moved_by_whole_pixels_and_right_angles() -> None:
    images = noise(40, 1, 28, 28)
    moved, angle_rad = augment(images, Augmentation(rotation_deg=180, shift=0.1, identity=1.0), seeded())
    turns = (angle_rad / (math.pi / 2)).round()
    assert float((angle_rad - turns * (math.pi / 2)).abs().max()) < 1e-6 and set(turns.tolist()) >= {-1, 0, 1}
    for before, after, turn in zip(images, moved, turns.int().tolist(), strict=True):
        turned = torch.rot90(before, turn, (1, 2))[0]
        found = [
            torch.allclose(after[0, 4:24, 4:24], turned[4 - y : 24 - y, 4 - x : 24 - x], atol=2e-5)
            for y in range(-3, 4)
            for x in range(-3, 4)
        ]
        assert sum(found) == 1


def test_a_frame_that_is_not_square_is_not_sheared() -> None:
    still = torch.zeros(200, 1, 40, 60)
    still[:, :, 15:25, 25:35] = 1
    moved, angle_rad = augment(still, Augmentation(rotation_deg=180), seeded())
    weight = moved[:, 0]
    y, x = torch.meshgrid(torch.arange(40) - 19.5, torch.arange(60) - 29.5, indexing="ij")
    spread = torch.stack([(weight * a * b).sum((1, 2)) / weight.sum((1, 2)) for a, b in ((x, x), (y, y), (x, y))])
    assert float(angle_rad.abs().max()) > 2
    assert float((spread[0] - spread[1]).abs().max()) < 0.3 and float(spread[2].abs().max()) < 0.3


def test_contrast_brightness_and_gamma_change_what_they_say() -> None:
    images = noise(200) * 0.2 + 0.4
    spread = augment(images, Augmentation(contrast=0.5), seeded())[0].std((1, 2, 3)) / images.std((1, 2, 3))
    assert 0.6 <= float(spread.min()) < 0.65 and 1.6 < float(spread.max()) <= 1.66
    lighter = augment(images, Augmentation(brightness=0.2), seeded())[0] - images
    assert float(lighter.std((1, 2, 3)).max()) < 1e-6 and -0.2 <= float(lighter.min()) < -0.19 < 0.19 < lighter.max()
    bent = augment(images, Augmentation(gamma=0.5), seeded())[0].log() / images.log()
    assert float(bent.std((1, 2, 3)).max()) < 1e-4 and 0.6 < float(bent.min()) < 0.65 and 1.6 < float(bent.max()) < 1.65


def test_color_changes_the_balance_of_channels_and_leaves_grey_images() -> None:
    images = noise(200) * 0.2 + 0.4
    spread = augment(images, Augmentation(color=0.3), seeded())[0].std((2, 3)) / images.std((2, 3))
    assert float((spread.max(1).values / spread.min(1).values).mean()) > 1.2
    grey = noise(20, 1)
    assert torch.allclose(augment(grey, Augmentation(color=0.3), seeded())[0], grey, atol=1e-4)


def test_sharpness_blurs_some_images_and_sharpens_others() -> None:
    images = noise(300) * 0.4 + 0.3
    change = augment(images, Augmentation(sharpness=0.8), seeded())[0].diff(dim=3).std((1, 2, 3)) / images.diff(
        dim=3
    ).std((1, 2, 3))
    assert float(change.min()) < 0.4 and float(change.max()) > 1.5


def test_noise_inversion_and_occlusion_have_their_ranges() -> None:
    grey = torch.full((400, 3, 32, 32), 0.5)
    sigma = augment(grey, Augmentation(noise=0.1), seeded())[0].std((1, 2, 3))
    assert 0 <= float(sigma.min()) < 0.005 and 0.095 < float(sigma.max()) < 0.105
    light = torch.full((400, 1, 32, 32), 0.9)
    dark = augment(light, Augmentation(invert=0.25), seeded())[0].mean((1, 2, 3)) < 0.5
    assert float(dark.float().mean()) == pytest.approx(0.25, abs=0.06)
    images = noise(400)
    changed = (augment(images, Augmentation(occlusion=0.5), seeded())[0] - images).abs() > 1e-3
    covered = changed.any(1).float().mean((1, 2))
    assert float(covered.min()) < 0.01 and 0.2 < float(covered.max()) <= 0.25 + 2 * 0.5 / 32


def test_every_photometric_range_changes_pixels_and_no_angle() -> None:
    images = noise(50)
    for name in PHOTOMETRIC:
        changed, angle_rad = augment(images, Augmentation(**{name: 0.5}), seeded())
        assert not torch.equal(changed, images) and float(angle_rad.abs().max()) == 0, name
        assert float(changed.min()) >= 0 and float(changed.max()) <= 1


def test_a_batch_sharded_over_processes_is_augmented_as_one() -> None:
    images, ranges = noise(12), AUGMENTATIONS["photo"]
    whole, angle_rad = augment(images, ranges, seeded(4))
    for first in (0, 6):
        part, angles = augment(images[first : first + 6], ranges, seeded(4), shard=(first, 12))
        assert torch.equal(part, whole[first : first + 6]) and torch.equal(angles, angle_rad[first : first + 6])


def test_auto_is_photometric_where_images_have_no_background_in_common() -> None:
    settings = TrainConfig(rotation="none")
    assert settings.augmentation(5000, background="none") == AUGMENTATIONS["photo"]
    assert settings.augmentation(5000, background="dark") == AUGMENTATIONS["light"]
    assert settings.augmentation(500, background="light") == AUGMENTATIONS["strong"]
    assert settings.augmentation(500, 500) == AUGMENTATIONS["medium"]
    turned = TrainConfig(rotation="full", mirror=True).augmentation(500, background="none")
    assert turned.rotation_deg == 180 and turned.mirror and turned.identity > 0 and turned.shear_deg == 0
    assert TrainConfig(rotation="30").augmentation(5000) == Augmentation(rotation_deg=30)


def test_drawings_in_colour_are_shown_in_other_colours() -> None:
    for images, kind in ((5000, "light"), (500, "strong")):
        grey, color = (TrainConfig(rotation="none").augmentation(images, channels=channels) for channels in (1, 3))
        assert grey == AUGMENTATIONS[kind] and grey.color == grey.contrast == 0
        assert color == replace(grey, **DRAWING_COLORS)
    turned = TrainConfig(rotation="full").augmentation(5000, channels=3)
    assert turned == Augmentation(rotation_deg=180, **DRAWING_COLORS)
    assert TrainConfig(rotation="none").augmentation(500, background="none", channels=3) == AUGMENTATIONS["photo"]
    assert TrainConfig(rotation="none", augment="none").augmentation(500, channels=3) == Augmentation()


@pytest.mark.parametrize(
    "wrong",
    [
        {"rotation_deg": 181},
        {"scale": 1},
        {"shear_deg": 90},
        {"shift": -1},
        {"elastic": -0.1},
        {"thickness": 2},
        {"identity": 1.5},
        {"noise": float("nan")},
        {"invert": -0.5},
    ],
)
def test_augmentation_of_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} .*expected a number from 0"):
        Augmentation(**wrong)
