"""New labelled images out of the decoder: classes and angles as asked, codes drawn as training's were spread."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vae_edge.data import LabelledImages
from vae_edge.errors import ConfigError, DataError
from vae_edge.files import atomic_path
from vae_edge.model import AngleVAE
from vae_edge.ops.turn import turn

SHEET_COLUMNS = 12


@torch.no_grad()
def generate(
    model: AngleVAE,
    classes: Sequence[str],
    per_class: int,
    wanted: Sequence[str] | None = None,
    angles_deg: Sequence[float] = (0.0,),
    spread: float = 0.7,
    seed: int = 0,
) -> LabelledImages:
    """Draw `per_class` images of each wanted class.

    A code is drawn from a normal distribution around the class's mean code with the covariance that training codes
    had, times `spread`²; its decoded image is turned counter-clockwise by the angles, one after the other.

    Args:
        model: trained, with its score fitted (that is where class means and covariance are).
        classes: the model's class names.
        wanted: names among them; all by default.
        angles_deg: counter-clockwise degrees, dealt out in turn.
        spread: 0 gives the class's mean image, 1 the spread of training's codes.

    Returns:
        uint8 [N, S, S, C] with labels and angles.

    Raises:
        ConfigError: for an unknown class, or numbers that make no sense.
    """
    names = list(wanted) if wanted else list(classes)
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise ConfigError(f"unknown class {', '.join(unknown)}: the model knows {', '.join(classes)}")
    if per_class < 1 or spread < 0 or not angles_deg:
        raise ConfigError(
            f"{per_class} images a class, spread {spread}, {len(angles_deg)} angles: expected at least 1, 0, 1"
        )
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([list(classes).index(name) for name in names]).repeat_interleave(per_class)
    unwhiten = torch.linalg.inv(model.score.whitening.double()).float()
    noise = torch.randn(len(labels), model.config.latent, generator=generator)
    codes = model.score.means[labels] + spread * noise @ unwhiten
    onehot = torch.nn.functional.one_hot(labels, len(classes)).float()
    model.eval()
    drawn = model.decoder(codes, onehot).sigmoid()
    angles = torch.tensor([angles_deg[i % len(angles_deg)] for i in range(len(labels))], dtype=torch.float32)
    turned = turn(drawn, angles.deg2rad().cos(), angles.deg2rad().sin())
    images = (turned * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return LabelledImages(images, labels.numpy(), tuple(classes), angles.numpy())


def contact_sheet(images: NDArray[np.uint8], columns: int = SHEET_COLUMNS, zoom: int = 2) -> Image.Image:
    """All images [N, S, S, C] on one page, row by row, one pixel apart, each pixel `zoom` wide."""
    count, side, _, channels = images.shape
    rows = -(-count // columns)
    page = np.zeros((rows * (side + 1) + 1, columns * (side + 1) + 1, channels), np.uint8) + 64
    for index, image in enumerate(images):
        y, x = divmod(index, columns)
        page[y * (side + 1) + 1 :, x * (side + 1) + 1 :][:side, :side] = image
    sheet = Image.fromarray(page[..., 0] if channels == 1 else page)
    return sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)


def _folder_name(name: str, label: int) -> str:
    """A class name as the name of a folder: no separators, never empty, never hidden."""
    plain = re.sub(r"[^\w +-]", "_", name).strip()
    return plain if plain.strip("_") else f"class_{label}"


def write_generated(data: LabelledImages, out: str | os.PathLike[str]) -> Path:
    """Write images as `.npz` (images, labels, classes, angles_deg) with a contact sheet beside it, or as a folder.

    A folder gets `<class>/<number>_<angle>.png` and `contact_sheet.png`; it is whole or absent.

    Raises:
        DataError: if `out` exists already.
    """
    target = Path(out)
    if target.exists():
        raise DataError(f"{target} exists already; choose another --out, so that nothing is lost")
    sheet = contact_sheet(data.images)
    assert data.angles_deg is not None
    if target.suffix == ".npz":
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file, images=data.images, labels=data.labels, classes=np.array(data.classes), angles_deg=data.angles_deg
            )
        with atomic_path(target.with_suffix(".png")) as temporary:
            sheet.save(temporary, "PNG")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for index, (image, label, angle) in enumerate(zip(data.images, data.labels, data.angles_deg, strict=True)):
            home = folder / _folder_name(data.classes[label], int(label))
            home.mkdir(exist_ok=True)
            picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
            picture.save(home / f"{index:05d}_{angle:+04.0f}.png")
        sheet.save(folder / "contact_sheet.png")
        folder.chmod(0o755)
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return target
