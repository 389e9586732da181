"""Networks for images of any size: what those up to 64 pixels were, and what larger and other shapes cost and do."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from vae_edge.errors import ConfigError
from vae_edge.exporting.onnx_file import ClassifierGraph
from vae_edge.model import AngleVAE, LossWeights, ModelConfig, compute_losses, create_config
from vae_edge.model.config import HEADS, LARGE_IMAGE_WIDTHS, POOLED_WIDTHS, PRESETS
from vae_edge.model.network import layout_for_preset
from vae_edge.ops.rotate import circular_mask, rotate
from vae_edge.spec import Size
from vae_edge.training.augment import Augmentation, augment

STORED = json.loads((Path(__file__).parents[1] / "fixtures/networks/up_to_64.json").read_text())
"""Names and shapes of the parameters (SHA-256) and outputs, before images could be larger or not square."""


def filled(model: AngleVAE) -> AngleVAE:
    """The network with weights of NumPy's, the same on every machine."""
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point() or name.startswith("score.") or name == "temperature":
                continue
            shape = tuple(tensor.shape)
            if tensor.ndim > 1:
                values = rng.standard_normal(shape) * (2.0 / np.prod(shape[1:])) ** 0.5
            elif name.endswith(("running_var", "weight")):
                values = rng.uniform(0.5, 1.5, shape)
            else:
                values = rng.uniform(-0.1, 0.1, shape)
            tensor.copy_(torch.from_numpy(values))
    return model.eval()


@pytest.mark.parametrize("stored", STORED)
def test_networks_up_to_64_pixels_are_what_they_were(stored: str) -> None:
    preset, size, channels = stored.split()
    config = create_config(preset, classes=5, size=int(size), channels=int(channels), stem_halvings=0)
    model = filled(AngleVAE(config))
    shape = (2, config.channels, config.height, config.width)
    image = torch.from_numpy(np.random.default_rng(1).random(shape, dtype=np.float32))
    with torch.no_grad():
        output = model(image)
    names = "\n".join(f"{name} {list(tensor.shape)}" for name, tensor in model.state_dict().items())
    assert hashlib.sha256(names.encode()).hexdigest() == STORED[stored]["state"]
    reconstruction = [*output.reconstruction.mean((1, 2, 3)), *output.reconstruction[0, 0, config.height // 2, ::9]]
    found = {
        "logits": output.logits.flatten(),
        "angle": torch.atan2(output.orientation.sin, output.orientation.cos),
        "reconstruction": torch.stack(reconstruction),
        "features": output.features[:, ::7].flatten(),
    }
    for name, values in found.items():
        torch.testing.assert_close(values, torch.tensor(STORED[stored][name]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [28, 65, 96, (96, 64), (64, 97), 128, (28, 224), 224])
def test_the_trunk_works_on_at_most_64_by_64_pixels_and_ends_at_4(preset: str, size: Size) -> None:
    config = create_config(preset, size=size)
    first, last = config.resolutions()[0], config.resolutions()[-1]
    assert math.prod(first) <= 64 * 64 and max(last) <= 4
    layers = config.convolutions(config.widths)
    assert layers[config.feature_layer()] == (config.widths[1], 1)
    side = (config.height, config.width)
    for _, stride in layers:
        side = (-(-side[0] // stride), -(-side[1] // stride))
    assert side == last and config.features(config.widths) == layers[-1][0] * math.prod(last)


@pytest.mark.parametrize("size", [96, (96, 64), (97, 130), (40, 30), 224])
def test_a_network_takes_images_of_any_shape_and_reconstructs_them(size: Size) -> None:
    config = create_config("tiny", size=size, channels=3, classes=4)
    model = AngleVAE(config).eval()
    with torch.no_grad():
        output = model(torch.rand(2, 3, config.height, config.width))
        whole = model.enlarge(output.reconstruction)
    assert output.logits.shape == (2, 4)
    assert output.upright.shape == whole.shape == (2, 3, config.height, config.width)
    assert output.reconstruction.shape == output.target.shape == (2, 3, *config.decoded_size)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("size", "limit"), [(96, 60e6), (224, 150e6)])
def test_small_stays_within_its_cost(size: int, limit: float, head: str) -> None:
    model = AngleVAE(create_config("small", size=size, channels=3, head=head)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ClassifierGraph(model)(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    assert 0.5 * limit < counter.get_total_flops() / 2 <= limit


def test_a_preset_of_large_images_has_channels_for_four_levels_unless_they_are_given() -> None:
    assert create_config("small", size=96).widths == LARGE_IMAGE_WIDTHS["small"][1]
    assert create_config("small", size=96, widths=(16, 32)).widths == (16, 32)
    assert create_config("small", size=40).widths == create_config("small").widths == (16, 32, 48)
    assert create_config("small", size=64, stem_halvings=0).widths == (16, 32, 48)


def test_how_often_the_stem_halves_is_stored_and_a_file_without_it_means_the_earlier_rule() -> None:
    for size, now, earlier in ((28, 0, 0), (40, 0, 0), (41, 1, 0), (64, 1, 0), (96, 1, 1), (128, 1, 1), (129, 2, 2)):
        config = create_config("tiny", size=size)
        assert config.stem_halvings == config.halvings == now
        assert ModelConfig.from_dict(json.loads(json.dumps(vars(config)))) == config
        stored = {name: value for name, value in vars(config).items() if name not in ("stem_halvings", "head")}
        assert (ModelConfig.from_dict(stored).stem_halvings, ModelConfig.from_dict(stored).head) == (earlier, "code")
    for changes in ({"stem_halvings": 3}, {"stem_halvings": -1}, {"head": "mean"}):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            create_config("tiny", **changes)


@pytest.mark.parametrize("size", [28, (64, 48)])
def test_a_pooled_classifier_reads_the_means_of_the_encoders_last_maps(size: Size) -> None:
    model = filled(AngleVAE(create_config("tiny", size=size, head="pooled")))
    image = torch.rand(3, 1, model.config.height, model.config.width)
    with torch.no_grad():
        found = model(image)
        shape = (model.encoder.map_channels, *model.config.resolutions(True)[-1])
        means = model.encoder(found.upright)[0].unflatten(1, shape).mean((2, 3))
        torch.testing.assert_close(model.classifier(means), found.logits)
        assert found.orientation.logits is None and model.orientation.classifier is None
        assert torch.equal(model.classify(image), found.logits)
        before = model.orientation.backbone.map_channels
        assert torch.equal(found.features[:, before : before + means.shape[1]], means)


@pytest.mark.parametrize("size", [28, (64, 97)])
@pytest.mark.parametrize("orientation", [False, True])
def test_a_second_classifier_reads_the_means_of_the_last_maps_and_is_one_layer_when_exported(
    size: Size, orientation: bool
) -> None:
    model = filled(AngleVAE(create_config("tiny", size=size, head="code+pooled", orientation=orientation)))
    image = torch.rand(3, 1, model.config.height, model.config.width)
    with torch.no_grad():
        found, exported = model(image), model.for_export()
        shape = (model.encoder.channels, *model.config.resolutions()[-1])
        encoded = model.encoder(found.upright)[0]
        weight, bias = model.second_classifier.weight, model.second_classifier.bias
        expected = encoded.unflatten(1, shape).mean((2, 3)) @ weight.T + bias
        torch.testing.assert_close(found.parts["pooled"], expected)
        assert set(found.parts) == {"code", "pooled"} | ({"orientation"} if orientation else set())
        torch.testing.assert_close(sum(found.parts.values()), found.logits)
        assert type(exported.second_classifier) is torch.nn.Linear
        torch.testing.assert_close(exported(image).logits, found.logits)
        torch.testing.assert_close(model.classify(image), found.logits)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [28, 65, 96, (64, 97), 128, (28, 224), 224])
def test_an_encoder_whose_maps_are_pooled_has_a_convolution_a_resolution_and_ends_at_8(preset: str, size: Size) -> None:
    config = create_config(preset, size=size, head="pooled")
    assert config.widths == POOLED_WIDTHS[preset]
    layers, sizes = config.convolutions(config.widths, True), config.resolutions(True)
    assert 4 < max(sizes[-1]) <= 8 and len(layers) == len(sizes)
    assert [stride for _, stride in layers] == [2 if config.halvings == 2 else 1] + [2] * (len(layers) - 1)
    assert config.feature_layer(True) == len(layers) - 1
    assert config.features(config.widths, True) == layers[-1][0] * math.prod(sizes[-1])


def test_the_target_is_the_mean_of_squares_of_pixels() -> None:
    model = AngleVAE(create_config("tiny", size=(96, 128)))
    image = torch.rand(2, 1, 96, 128)
    expected = image.reshape(2, 1, 48, 2, 64, 2).mean((3, 5))
    torch.testing.assert_close(model.reduce(image), expected)
    odd = AngleVAE(create_config("tiny", size=(97, 65)))
    image = torch.rand(1, 1, 97, 65)
    reduced = odd.reduce(image)
    assert reduced.shape == (1, 1, 49, 33)
    torch.testing.assert_close(reduced[0, 0, -1, 0], image[0, 0, 96, :2].mean())
    torch.testing.assert_close(reduced[0, 0, -1, -1], image[0, 0, 96, 64])


def test_the_loss_compares_the_reconstruction_with_the_target() -> None:
    model = AngleVAE(create_config("tiny", size=(96, 80), classes=3))
    output = model.forward_train(torch.rand(2, 1, 96, 80), torch.tensor([0, 1]), 0, 0)
    found = compute_losses(output, torch.tensor([0, 1]), torch.zeros(2), LossWeights())["reconstruction"]
    target = F.avg_pool2d(output.upright, 2)
    entropy = (torch.special.entr(target) + torch.special.entr(1 - target)).sum()
    likelihood = F.binary_cross_entropy_with_logits(output.reconstruction, target, reduction="sum")
    torch.testing.assert_close(found, (likelihood - entropy) / 2 * (28 * 28) / target[0].numel(), rtol=1e-4, atol=1e-4)


def in_a_square(images: torch.Tensor) -> tuple[torch.Tensor, tuple[slice, slice]]:
    """Images [N, C, H, W] in the middle of black squares, and where in those they are. Sides are even."""
    height, width = images.shape[-2:]
    side = 2 * max(height, width)
    down, across = (side - height) // 2, (side - width) // 2
    square = F.pad(images, (across, across, down, down))
    return square, (slice(down, down + height), slice(across, across + width))


@pytest.mark.parametrize("shape", [(40, 28), (28, 40), (96, 64)])
def test_a_frame_that_is_not_square_is_rotated_by_pixels_and_not_sheared(shape: tuple[int, int]) -> None:
    images, angle = torch.rand(3, 2, *shape), torch.tensor([0.3, -1.4, 2.5])
    square, where = in_a_square(images)
    expected = rotate(square, angle.cos(), angle.sin())[:, :, where[0], where[1]]
    torch.testing.assert_close(rotate(images, angle.cos(), angle.sin()), expected, rtol=1e-4, atol=1e-4)


def test_augmentation_rotates_a_frame_that_is_not_square_by_pixels() -> None:
    images = torch.rand(3, 1, 40, 28)
    square, where = in_a_square(images)
    ranges = Augmentation(rotation_deg=180.0, scale=0.2, shear_deg=10.0)
    found, angles = augment(images, ranges, torch.Generator().manual_seed(0))
    expected, same = augment(square, ranges, torch.Generator().manual_seed(0))
    torch.testing.assert_close(angles, same)
    torch.testing.assert_close(found, expected[:, :, where[0], where[1]], rtol=1e-4, atol=1e-4)


def test_the_circular_mask_is_inscribed_in_the_shorter_side() -> None:
    mask = circular_mask((96, 64))
    assert mask.shape == (96, 64)
    torch.testing.assert_close(mask[16:80], circular_mask(64))
    assert not mask[:15].any() and not mask[81:].any()


@pytest.mark.parametrize("size", [(96,), (96, 64, 3), 27, (27, 64), (64, 225)])
def test_a_size_that_is_none_is_refused(size: object) -> None:
    with pytest.raises(ConfigError, match="size"):
        ModelConfig(size=size)  # type: ignore[arg-type]


def test_a_configuration_with_two_sides_survives_json_and_one_with_equal_sides_has_one() -> None:
    config = create_config("tiny", size=(96, 64))
    assert ModelConfig.from_dict(json.loads(json.dumps(vars(config)))) == config
    assert create_config("tiny", size=(64, 64)).size == 64


def test_a_network_is_named_by_preset_and_size() -> None:
    net = layout_for_preset("tiny@96x64")
    assert (net.height, net.width, net.channels, net.reduction) == (96, 64, 3, 2)
    for name in ("tiny@", "tiny@x", "tiny@96x", "tiny@300", "tiny@0x96"):
        with pytest.raises(ConfigError):
            layout_for_preset(name)
