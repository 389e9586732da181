"""New labelled images out of the decoder: classes and angles as asked, from codes between those of training images.

Codes drawn around a class's mean are the other way, which needs no codes of training images. As training images, those
between two codes, kept only where the classifier knows them for their class, are the better ones.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vae_edge.data import LabelledImages
from vae_edge.data.listing import UNLABELLED
from vae_edge.data.sheet import CONTACT_SHEET, contact_sheet
from vae_edge.errors import ConfigError, DataError
from vae_edge.files import atomic_path, naming
from vae_edge.model import AngleVAE
from vae_edge.ops.rotate import rotate
from vae_edge.text import file_name, normal_form

METHODS = ("between", "around")
WEIGHTS = 0.2, 0.8  # of the second code in a mixture
CONFIDENCE = 0.9
SPREAD = 0.7
TRIES = 20  # images drawn, at most, for each one that is wanted
BATCH, LEAST_DRAWN = 500, 32


Draw = Callable[[int, int, torch.Generator], torch.Tensor]  # class, how many, randomness: to codes [n, Z]


@torch.no_grad()
def generate(
    model: AngleVAE,
    classes: Sequence[str],
    per_class: int,
    wanted: Sequence[str] | None = None,
    angles_deg: Sequence[float] = (0.0,),
    spread: float = SPREAD,
    seed: int = 0,
    absent: Sequence[str] = (),
    codes: NDArray[np.float32] | torch.Tensor | None = None,
    code_labels: NDArray[np.int64] | torch.Tensor | None = None,
    how: str | None = None,
    confidence: float | None = None,
    fill_up: bool = False,
) -> LabelledImages:
    """Draw `per_class` images of each wanted class.

    `between`: two codes of training images of the class are mixed, with a weight uniform in [0.2, 0.8], and decoded as
    that class. `around`: a code is drawn from a normal distribution around the class's mean code with the covariance
    that training codes had, times `spread`². An image counts only if the model itself, shown it upright, gives its
    class at least `confidence`; up to 20 are drawn for each that is wanted. It is then turned counter-clockwise by
    the angles, one after the other.

    Args:
        model: trained, with its score fitted (that is where class means and covariance are).
        classes: the model's class names.
        wanted: names among them; all by default.
        angles_deg: counter-clockwise degrees, dealt out in turn.
        spread: for `around`: 0 gives the class's mean image, 1 the spread of training's codes.
        absent: names of classes that had no training images, of which nothing can be drawn.
        codes: of training images, [M, Z].
        code_labels: the class of each, [M].
        how: `between` or `around`; by default `between` where each wanted class has two codes.
        fill_up: where too few images of a class reach the confidence, the surest ones of those drawn take their places.
        confidence: from 0, which keeps every image, to below 1; by default 0.9 for `between` and 0 for `around`.

    Returns:
        uint8 [N, S, S, C] with labels and angles, class by class.

    Raises:
        ConfigError: for an unknown class, numbers that make no sense, or `between` without two codes of a class.
        DataError: too few images of some classes reach the confidence; it says how many did.
    """
    known = {normal_form(name): name for name in classes}  # a terminal may write a name in another form
    asked = [known.get(normal_form(name), name) for name in wanted or ()]
    names = list(dict.fromkeys(asked)) or [name for name in classes if name not in absent]
    unknown = [name for name in names if name not in classes or name in absent]
    if unknown:
        raise ConfigError(f"unknown class {', '.join(unknown)}: the model knows {', '.join(classes)}")
    if per_class < 1 or not angles_deg or not np.isfinite(angles_deg).all():
        raise ConfigError(f"{per_class} images a class, angles {angles_deg}: expected at least one, of finite degrees")
    if not 0 <= spread < np.inf:
        raise ConfigError(f"spread {spread}: expected a finite number from 0 on")
    labels = [list(classes).index(name) for name in names]
    counts = np.bincount(np.asarray(code_labels, dtype=np.int64), minlength=len(classes)) if codes is not None else None
    how = choose_method(how, names, [0 if counts is None else int(counts[label]) for label in labels])
    least = (CONFIDENCE if how == "between" else 0.0) if confidence is None else confidence
    if not 0 <= least < 1:
        raise ConfigError(f"confidence {least}: expected a number from 0 to below 1")
    draw = _between(model, codes, code_labels) if how == "between" else _around(model, spread)
    model.eval()
    found = {
        name: _recognized(
            model, draw, label, per_class, least, fill_up, torch.Generator().manual_seed(seed * 1_000_003 + label)
        )
        for name, label in zip(names, labels, strict=True)
    }
    short = [f"{len(images)} of {name}" for name, images in found.items() if len(images) < per_class]
    if short:
        raise DataError(
            f"of {TRIES * per_class} images drawn of each class {how} the training codes, the model recognized only "
            f"{', '.join(short)} with a confidence of {least} or more, where {per_class} are wanted: ask for fewer or "
            "for a lower confidence, or train for longer"
        )
    drawn = torch.cat([found[name] for name in names])
    angles = np.resize(np.asarray(angles_deg, dtype=np.float32), len(drawn))
    images = _turned(drawn, torch.from_numpy(angles).deg2rad(), model.config.fill)
    return LabelledImages(images, np.repeat(np.array(labels, np.int64), per_class), tuple(classes), angles)


def choose_method(how: str | None, names: Sequence[str], codes_of_each: Sequence[int]) -> str:
    """`between` or `around`, as told, or by how many training codes there are of each class that is wanted.

    Raises:
        ConfigError: an unknown method, or `between` where a class has fewer than two codes.
    """
    if how not in (None, *METHODS):
        raise ConfigError(f"method {how!r}: expected {' or '.join(METHODS)}")
    few = [name for name, count in zip(names, codes_of_each, strict=True) if count < 2]
    if how == "between" and few:
        raise ConfigError(
            f"method between mixes two training codes of a class, but there are not two of {', '.join(few)}; "
            "take method around"
        )
    return how or ("around" if few else "between")


def _around(model: AngleVAE, spread: float) -> Draw:
    unwhiten = torch.linalg.inv(model.score.whitening.double().cpu()).float()
    means = model.score.means.cpu()

    def draw(label: int, count: int, generator: torch.Generator) -> torch.Tensor:
        noise = torch.randn(count, model.config.latent, generator=generator)
        return means[label] + spread * noise @ unwhiten

    return draw


def _between(model: AngleVAE, codes: object, code_labels: object) -> Draw:
    known, labels = torch.as_tensor(codes).float().cpu(), torch.as_tensor(code_labels).cpu()
    if known.shape != (len(labels), model.config.latent):
        raise ConfigError(
            f"codes are one row of {model.config.latent} numbers for each of the {len(labels)} labels, "
            f"but their shape is {list(known.shape)}"
        )
    low, high = WEIGHTS

    def draw(label: int, count: int, generator: torch.Generator) -> torch.Tensor:
        own = known[labels == label]
        first = torch.randint(len(own), (count,), generator=generator)
        second = (first + 1 + torch.randint(len(own) - 1, (count,), generator=generator)) % len(own)  # never itself
        weight = low + (high - low) * torch.rand(count, 1, generator=generator)
        return torch.lerp(own[first], own[second], weight)

    return draw


def _recognized(
    model: AngleVAE, draw: Draw, label: int, wanted: int, least: float, fill_up: bool, generator: torch.Generator
) -> torch.Tensor:
    """Up to `wanted` upright images uint8 [n, C, S, S] to which the model gives their class at least `least`.

    With `fill_up` there are `wanted` in any case, the last ones being those that come nearest to it.
    """
    device = model.score.means.device
    onehot = torch.nn.functional.one_hot(torch.tensor([label]), model.config.classes).float()
    parts: list[torch.Tensor] = []
    others: list[tuple[torch.Tensor, torch.Tensor]] = []
    count, left = 0, TRIES * wanted if least else wanted
    while count < wanted and left:
        size = min(BATCH, left, max(wanted - count, LEAST_DRAWN))
        codes = draw(label, size, generator).to(device)
        pixels = (model.decoder(codes, onehot.expand(size, -1).to(device)).sigmoid() * 255).round()
        if least:
            sure = model.probabilities(model(pixels / 255).logits)[:, label]
            if fill_up:
                others.append((sure[sure < least], pixels[sure < least].to(torch.uint8).cpu()))
            pixels = pixels[sure >= least]
        parts.append(pixels.to(torch.uint8).cpu())
        count, left = count + len(pixels), left - size
    if fill_up and count < wanted:
        order = torch.cat([sure for sure, _ in others]).argsort(descending=True, stable=True).cpu()
        parts.append(torch.cat([pixels for _, pixels in others])[order[: wanted - count]])
    return torch.cat(parts)[:wanted]


def _turned(images: torch.Tensor, angles_rad: torch.Tensor, fill: float) -> NDArray[np.uint8]:
    """Upright uint8 [N, C, S, S] turned counter-clockwise: uint8 [N, S, S, C]."""
    parts = []
    for pages, angles in zip(images.split(BATCH), angles_rad.split(BATCH), strict=True):
        turned = pages
        if angles.any():
            floats = rotate(pages.float() / 255, angles.cos(), angles.sin(), fill)
            turned = (floats * 255).round().clamp(0, 255).to(torch.uint8)
        parts.append(turned.permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def _folder_names(classes: Sequence[str]) -> list[str]:
    """Each class's name as that of a folder: as it is, but for what a file system or our own reader takes amiss."""
    names: list[str] = []
    for label, name in enumerate(classes):
        plain = re.sub(r"[/\\\0]", "_", name)
        taken = plain in names or plain.lower() in UNLABELLED
        if plain.startswith((".", "__")) or not plain.strip() or taken:
            plain = f"class_{label}_{plain.strip('._')}".rstrip("_")
        names.append(plain)
    return names


def check_out_free(out: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Where `write_generated` writes the images and their contact sheet (of a folder, both inside it).

    Raises:
        DataError: if something is there already.
    """
    target = Path(out)
    beside = target.with_suffix(".png") if target.suffix == ".npz" else target
    for path in (target, beside):
        if path.exists():
            raise DataError(f"{path} exists already; choose another --out, so that nothing is lost")
    return target, beside


def write_generated(data: LabelledImages, out: str | os.PathLike[str]) -> Path:
    """Write images as `.npz` (images, labels, classes, angles_deg) with a contact sheet beside it, or as a folder.

    A folder gets `<class>/<number>_<angle>.png` and `contact_sheet.png`; it is whole or absent.

    Raises:
        DataError: if `out` exists already.
    """
    target, beside = check_out_free(out)
    sheet = contact_sheet(data)
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
        with naming(target):
            _write_pictures(data, folder, names, sheet)
            folder.chmod(0o755)
            folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return target


def _write_pictures(data: LabelledImages, folder: Path, names: Sequence[str], sheet: Image.Image) -> None:
    """One PNG an image, in folders by class, and the contact sheet."""
    assert data.angles_deg is not None
    for index, (image, label, angle) in enumerate(zip(data.images, data.labels, data.angles_deg, strict=True)):
        home = folder / file_name(names[label])
        home.mkdir(exist_ok=True)
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        picture.save(home / f"{index:05d}_{angle:+04.0f}.png")
    sheet.save(folder / CONTACT_SHEET)
