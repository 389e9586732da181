from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.Image import Resampling
from torch.export import Dim

from vae_edge.ops.rotate import rotate


def blob(size: int = 28, seed: int = 0) -> np.ndarray:
    """A smooth, lopsided picture with dark borders."""
    rows, columns = np.mgrid[:size, :size] / (size - 1) * 2 - 1
    generator = np.random.default_rng(seed)
    page = np.zeros((size, size))
    for _ in range(4):
        x, y = generator.uniform(-0.35, 0.35, 2)
        page += np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 0.03) * generator.uniform(0.4, 1)
    return (page / page.max() * 255).astype(np.uint8)


def turned(image: np.ndarray, angle_deg: float) -> np.ndarray:
    angle = torch.tensor([math.radians(angle_deg)])
    return rotate(torch.tensor(image, dtype=torch.float32)[None, None], angle.cos(), angle.sin())[0, 0].numpy()


def test_a_mark_at_the_top_goes_to_the_left_by_a_quarter_turn() -> None:
    image = np.zeros((28, 28), dtype=np.uint8)
    image[2, 13] = 255
    result = turned(image, 90)
    assert result[14, 2] == pytest.approx(255, abs=0.1) and result.sum() == pytest.approx(255, abs=0.5)


@pytest.mark.parametrize("size", [28, 29, 64])
def test_quarter_turns_are_numpys(size: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (size, size), dtype=np.uint8)
    for quarters in range(4):
        assert np.abs(turned(image, 90 * quarters) - np.rot90(image, quarters)).max() < 0.1


@pytest.mark.parametrize("angle_deg", [-179, -120.5, -45, 7.3, 30, 90, 135.2, 180])
@pytest.mark.parametrize("size", [28, 64])
def test_any_turn_is_pillows_bilinear_one(angle_deg: float, size: int) -> None:
    image = blob(size)
    expected = np.asarray(Image.fromarray(image).rotate(angle_deg, Resampling.BILINEAR)).astype(float)
    assert np.abs(turned(image, angle_deg) - expected).max() <= 1.5  # Pillow rounds to whole grey values


def test_turning_the_other_way_is_told_apart() -> None:
    image = blob()
    wrong = np.asarray(Image.fromarray(image).rotate(-30, Resampling.BILINEAR)).astype(float)
    assert np.abs(turned(image, 30) - wrong).max() > 50


def test_each_image_has_its_own_angle_and_gradients_run_through() -> None:
    images = torch.rand(3, 2, 28, 28, requires_grad=True)
    angle = torch.tensor([0.0, 0.5, math.pi], requires_grad=True)
    result = rotate(images, angle.cos(), angle.sin())
    assert torch.allclose(result[0], images[0], atol=1e-5)
    assert torch.allclose(result[2], images[2].flip(-1, -2), atol=1e-4)
    result.square().sum().backward()
    assert images.grad is not None and angle.grad is not None and bool(angle.grad[1] != 0)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_exported_graph_turns_alike_for_any_batch() -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    class Turn(torch.nn.Module):
        def forward(self, images: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
            return rotate(images, cos, sin)

    batch = {0: Dim("batch", min=1, max=64)}
    angle = torch.rand(3) * 6
    program = torch.onnx.export(
        Turn(),
        (torch.rand(3, 1, 28, 28), angle.cos(), angle.sin()),
        dynamo=True,
        dynamic_shapes=(batch, batch, batch),
        opset_version=20,
        verbose=False,
    )
    buffer = io.BytesIO()
    program.save(buffer)
    session = runtime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    for count in (1, 5):
        images, angle = torch.rand(count, 1, 28, 28), torch.rand(count) * 6
        inputs = (images, angle.cos(), angle.sin())
        feed = dict(zip(names, [each.numpy() for each in inputs], strict=True))
        assert np.abs(session.run(None, feed)[0] - rotate(*inputs).numpy()).max() < 1e-4
