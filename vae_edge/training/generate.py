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
BATCH = 500


@torch.no_grad()
def generate(
    model: AngleVAE,
    classes: Sequence[str],
    per_class: int,
    wanted: Sequence[str] | None = None,
    angles_deg: Sequence[float] = (0.0,),
    spread: float = 0.7,
    seed: int = 0,
    absent: Sequence[str] = (),
) -> LabelledImages:
    """Draw `per_class` images of each wanted class.

    A code is drawn from a normal distribution around the class's mean code with the covariance that training codes
    had, times `spread`²; its decoded image is turned counter-clockwise by the angles, one after the other.

    Args:
        model: trained, with its score fitted (that is where class means and covariance are).
        classes: the model's class names.
        wanted: names among them; all by default.
        angles_deg: counter-clockwise degrees, dealt out in turn.
        absent: names of classes that had no training images, of which nothing can be drawn.
        spread: 0 gives the class's mean image, 1 the spread of training's codes.

    Returns:
        uint8 [N, S, S, C] with labels and angles.

    Raises:
        ConfigError: for an unknown class, or numbers that make no sense.
    """
    names = list(wanted) if wanted else [name for name in classes if name not in absent]
    unknown = [name for name in names if name not in classes or name in absent]
    if unknown:
        raise ConfigError(f"unknown class {', '.join(unknown)}: the model knows {', '.join(classes)}")
    if per_class < 1 or not angles_deg or not np.isfinite(angles_deg).all():
        raise ConfigError(f"{per_class} images a class, angles {angles_deg}: expected at least one, of finite degrees")
    if not 0 <= spread < np.inf:
        raise ConfigError(f"spread {spread}: expected a finite number from 0 on")
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([list(classes).index(name) for name in names]).repeat_interleave(per_class)
    unwhiten = torch.linalg.inv(model.score.whitening.double()).float()
    noise = torch.randn(len(labels), model.config.latent, generator=generator)
    codes = model.score.means[labels] + spread * noise @ unwhiten
    onehot = torch.nn.functional.one_hot(labels, len(classes)).float()
    model.eval()
    parts = zip(codes.split(BATCH), onehot.split(BATCH), strict=True)
    drawn = torch.cat([model.decoder(*part).sigmoid() for part in parts])
    angles = torch.tensor([angles_deg[i % len(angles_deg)] for i in range(len(labels))], dtype=torch.float32)
    turned = turn(drawn, angles.deg2rad().cos(), angles.deg2rad().sin(), model.config.fill)
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


def _folder_names(classes: Sequence[str]) -> list[str]:
    """Each class's name as that of a folder: as it is, but for what a file system or our own reader takes amiss."""
    names: list[str] = []
    for label, name in enumerate(classes):
        plain = re.sub(r"[/\\\0]", "_", name)
        if plain.startswith((".", "__")) or not plain.strip() or plain in names:
            plain = f"class_{label}_{plain.strip('._')}".rstrip("_")
        names.append(plain)
    return names


def write_generated(data: LabelledImages, out: str | os.PathLike[str]) -> Path:
    """Write images as `.npz` (images, labels, classes, angles_deg) with a contact sheet beside it, or as a folder.

    A folder gets `<class>/<number>_<angle>.png` and `contact_sheet.png`; it is whole or absent.

    Raises:
        DataError: if `out` exists already.
    """
    target = Path(out)
    beside = target.with_suffix(".png") if target.suffix == ".npz" else target
    for path in (target, beside):
        if path.exists():
            raise DataError(f"{path} exists already; choose another --out, so that nothing is lost")
    firsts = [np.flatnonzero(data.labels == k)[:SHEET_COLUMNS] for k in range(len(data.classes))]
    sheet = contact_sheet(data.images[np.concatenate(firsts)])
    assert data.angles_deg is not None
    if target.suffix == ".npz":
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file, images=data.images, labels=data.labels, classes=np.array(data.classes), angles_deg=data.angles_deg
            )
        with atomic_path(beside) as temporary:
            sheet.save(temporary, "PNG")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    names = _folder_names(data.classes)
    try:
        for index, (image, label, angle) in enumerate(zip(data.images, data.labels, data.angles_deg, strict=True)):
            home = folder / names[label]
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
