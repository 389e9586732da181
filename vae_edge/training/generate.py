"""New labelled images from the decoder, by class and angle; and what a network makes of images, as pictures.

The codes are interpolated between those of two training images, or drawn from a Gaussian around a class's mean, which
needs no codes of training images. As training images the interpolated ones are better, filtered by the classifier's
confidence. Pictures are derotated images, reconstructions, and latent traversals.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vae_edge.data import LabelledImages
from vae_edge.data.dataset import UNLABELLED
from vae_edge.data.folder import CONTACT_SHEET
from vae_edge.data.transforms import contact_sheet
from vae_edge.errors import ConfigError, DataError
from vae_edge.files import atomic_path, naming
from vae_edge.model import AngleVAE
from vae_edge.ops.rotate import rotate
from vae_edge.text import file_name, normal_form
from vae_edge.training.checkpoint import RunSamples
from vae_edge.training.data import to_float
from vae_edge.training.evaluate import BATCH

METHODS = ("interpolate", "gaussian")
WEIGHTS = 0.2, 0.8  # range of the second code's weight in an interpolation
CONFIDENCE = 0.9  # by default, of interpolated images
TEMPERATURE = 0.7
MAX_TRIES = 20  # images decoded for each requested one, where all classes must succeed
PERSISTENT_TRIES = 100  # and where a class may be left out
HOPELESS_TRIES, MIN_TRIES = (
    5,
    64,
)  # for each requested one and in all, of which none was recognized: no more are decoded
DECODE_BATCH, MIN_DRAWN = 500, 32

Sampler = Callable[[int, int, torch.Generator], Tensor]  # class, count, random numbers: to codes [count, Z]


@dataclass(frozen=True)
class Generation:
    """Generated images, and what could not be generated."""

    images: LabelledImages
    """uint8 [N, S, S, C] with labels and angles, class by class."""
    missing: Mapping[str, str]
    """For each class with fewer images than were asked for, a sentence that says how many and why."""
    unrecognized: int = 0
    """Images that the model does not recognize with the confidence that was asked for."""


@torch.no_grad()
def generate_available(
    model: AngleVAE,
    classes: Sequence[str],
    per_class: int,
    wanted: Sequence[str] | None = None,
    angles_deg: Sequence[float] = (0.0,),
    temperature: float = TEMPERATURE,
    seed: int = 0,
    absent: Sequence[str] = (),
    codes: NDArray[np.float32] | Tensor | None = None,
    code_labels: NDArray[np.int64] | Tensor | None = None,
    method: str | None = None,
    confidence: float | None = None,
    top_up: bool = False,
    max_tries: int = PERSISTENT_TRIES,
    progress: Callable[[int, int], None] | None = None,
) -> Generation:
    """Generate up to `per_class` images of each wanted class.

    `interpolate` mixes the codes of two training images of the class, with a weight uniform in [0.2, 0.8]. `gaussian`
    samples a normal distribution around the class's mean code, with the training codes' covariance times
    `temperature`². An image counts only if the model, shown it upright, gives its class at least `confidence`. It is
    then rotated counter-clockwise by the angles in turn. The work is bounded: of each requested image up to `max_tries`
    are decoded, and of a class of which none of the first ones is recognized far fewer.

    Args:
        model: trained, with its score fitted (that is where class means and covariance are).
        classes: the model's class names.
        per_class: images of each class.
        wanted: names among `classes`; all by default.
        angles_deg: counter-clockwise degrees, cycled through.
        temperature: of `gaussian`: 0 gives the class's mean image, 1 the training codes' covariance.
        seed: of the random numbers.
        absent: names of classes without training images, of which nothing can be generated.
        codes: of training images, [M, Z].
        code_labels: the class of each, [M].
        method: `interpolate` or `gaussian`; by default for each class `interpolate` where it has two codes.
        confidence: from 0, which keeps every image, to below 1; by default 0.9 for `interpolate`, 0 for `gaussian`.
        top_up: where too few images of a class reach the confidence, add the most confident ones of the others.
        max_tries: images decoded for each requested one, at most.
        progress: called with (classes done, classes in all).

    Raises:
        ConfigError: for an unknown class, or numbers that make no sense.
    """
    names = _wanted_classes(classes, wanted, absent)
    if per_class < 1 or not angles_deg or not np.isfinite(angles_deg).all():
        raise ConfigError(f"{per_class} images a class, angles {angles_deg}: expected at least one, of finite degrees")
    if not 0 <= temperature < np.inf:
        raise ConfigError(f"temperature {temperature}: expected a finite number from 0 on")
    if method not in (None, *METHODS):
        raise ConfigError(f"method {method!r}: expected {' or '.join(METHODS)}")
    if confidence is not None and not 0 <= confidence < 1:
        raise ConfigError(f"confidence {confidence}: expected a number from 0 to below 1")
    samplers = {"gaussian": _gaussian(model, temperature)}
    if codes is not None:
        samplers["interpolate"] = _interpolate(model, codes, code_labels)
    counts = _codes_of_each(classes, codes, code_labels)

    model.eval()
    missing = {} if wanted else dict.fromkeys(absent, "there were no training images of it")
    upright: list[Tensor] = []
    labels: list[int] = []
    turns: list[int] = []
    unrecognized = 0
    for number, name in enumerate(names):
        label = list(classes).index(name)
        chosen = method or ("interpolate" if counts[label] >= 2 else "gaussian")
        if chosen == "interpolate" and counts[label] < 2:
            missing[name] = f"two training codes are mixed, and it has {counts[label]}"
            continue
        minimum = (CONFIDENCE if chosen == "interpolate" else 0.0) if confidence is None else confidence
        random = torch.Generator().manual_seed(seed * 1_000_003 + label)
        found = _filter_confident(model, samplers[chosen], label, per_class, minimum, top_up, max_tries, random)
        upright.append(found.images)
        labels += [label] * len(found.images)
        turns += range(number * per_class, number * per_class + len(found.images))
        unrecognized += len(found.images) - found.recognized
        if len(found.images) < per_class:
            missing[name] = (
                f"{len(found.images) or 'none'} of {per_class}; of {found.tries} decoded images (method {chosen}) the "
                f"model recognized {found.recognized or 'none'} with a confidence of {minimum} or more"
            )
        if progress is not None:
            progress(number + 1, len(names))
    config = model.config
    if not upright:
        device = model.score.means.device
        codes, weights = (torch.zeros(1, count, device=device) for count in (config.latent, config.classes))
        upright = [model.decoder(codes, weights)[:0].byte().cpu()]
    flat = torch.cat(upright)
    angles = np.asarray(angles_deg, dtype=np.float32)[np.array(turns, np.int64) % len(angles_deg)]
    images = _rotate(flat, torch.from_numpy(angles).deg2rad(), config.fill)
    return Generation(LabelledImages(images, np.array(labels, np.int64), tuple(classes), angles), missing, unrecognized)


def generate(
    model: AngleVAE,
    classes: Sequence[str],
    per_class: int,
    wanted: Sequence[str] | None = None,
    angles_deg: Sequence[float] = (0.0,),
    temperature: float = TEMPERATURE,
    seed: int = 0,
    absent: Sequence[str] = (),
    codes: NDArray[np.float32] | Tensor | None = None,
    code_labels: NDArray[np.int64] | Tensor | None = None,
    method: str | None = None,
    confidence: float | None = None,
    top_up: bool = False,
) -> LabelledImages:
    """Generate `per_class` images of each wanted class, or of none: `generate_available` where nothing may be missing.

    Args:
        method: by default `interpolate` where each wanted class has two codes, else `gaussian` for all of them.
        model, classes, per_class, wanted, angles_deg, temperature, seed, absent: as `generate_available`.
        codes, code_labels, confidence, top_up: as `generate_available`.

    Raises:
        ConfigError: for an unknown class, numbers that make no sense, or `interpolate` without two codes of a class.
        DataError: too few images of some classes reach the confidence; the message says how many did.
    """
    names = _wanted_classes(classes, wanted, absent)
    counts = _codes_of_each(classes, codes, code_labels)
    method = choose_method(method, names, [counts[list(classes).index(name)] for name in names])
    found = generate_available(
        model,
        classes,
        per_class,
        names,
        angles_deg,
        temperature,
        seed,
        codes=codes,
        code_labels=code_labels,
        method=method,
        confidence=confidence,
        top_up=top_up,
        max_tries=MAX_TRIES,
    )
    if found.missing:
        words = "; ".join(f"class {name}: {why}" for name, why in found.missing.items())
        raise DataError(f"too few images could be generated: {words}. Ask for fewer, or train for longer")
    return found.images


def _codes_of_each(classes: Sequence[str], codes: object, code_labels: object) -> list[int]:
    """Number of training codes of each class."""
    if codes is None:
        return [0] * len(classes)
    return torch.bincount(torch.as_tensor(code_labels).long().cpu(), minlength=len(classes)).tolist()


def _wanted_classes(classes: Sequence[str], wanted: Sequence[str] | None, absent: Sequence[str]) -> list[str]:
    known = {normal_form(name): name for name in classes}  # a terminal may write a name in another form
    requested = [known.get(normal_form(name), name) for name in wanted or ()]
    names = list(dict.fromkeys(requested)) or [name for name in classes if name not in absent]
    unknown = [name for name in names if name not in classes or name in absent]
    if unknown:
        raise ConfigError(f"unknown class {', '.join(unknown)}: the model knows {', '.join(classes)}")
    return names


def choose_method(method: str | None, names: Sequence[str], codes_of_each: Sequence[int]) -> str:
    """Take the method that is given, or choose by the number of training codes of each wanted class.

    Raises:
        ConfigError: an unknown method, or `interpolate` where a class has fewer than two codes.
    """
    if method not in (None, *METHODS):
        raise ConfigError(f"method {method!r}: expected {' or '.join(METHODS)}")
    few = [name for name, count in zip(names, codes_of_each, strict=True) if count < 2]
    if method == "interpolate" and few:
        raise ConfigError(
            f"method interpolate mixes two training codes of a class, but there are not two of {', '.join(few)}; "
            "take method gaussian"
        )
    return method or ("gaussian" if few else "interpolate")


def _gaussian(model: AngleVAE, temperature: float) -> Sampler:
    unwhiten = torch.linalg.inv(model.score.whitening.double().cpu()).float()
    means = model.score.means.cpu()

    def sample(label: int, count: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(count, model.config.latent, generator=generator)
        return means[label] + temperature * noise @ unwhiten

    return sample


def _interpolate(model: AngleVAE, codes: object, code_labels: object) -> Sampler:
    known, labels = torch.as_tensor(codes).float().cpu(), torch.as_tensor(code_labels).cpu()
    if known.shape != (len(labels), model.config.latent):
        raise ConfigError(
            f"codes are one row of {model.config.latent} numbers for each of the {len(labels)} labels, "
            f"but their shape is {list(known.shape)}"
        )
    low, high = WEIGHTS

    def sample(label: int, count: int, generator: torch.Generator) -> Tensor:
        own = known[labels == label]
        first = torch.randint(len(own), (count,), generator=generator)
        second = (first + 1 + torch.randint(len(own) - 1, (count,), generator=generator)) % len(own)  # never itself
        weight = low + (high - low) * torch.rand(count, 1, generator=generator)
        return torch.lerp(own[first], own[second], weight)

    return sample


@dataclass(frozen=True)
class _Found:
    """Upright images uint8 [n, C, S, S] of a class, those that the model recognizes first; and the number decoded."""

    images: Tensor
    recognized: int
    tries: int


def _filter_confident(
    model: AngleVAE,
    sampler: Sampler,
    label: int,
    wanted: int,
    minimum: float,
    top_up: bool,
    max_tries: int,
    generator: torch.Generator,
) -> _Found:
    """Up to `wanted` images to which the model gives their class at least `minimum`.

    With `top_up` there are `wanted` where that can be: the last ones are the most confident of the others.
    """
    device = model.score.means.device
    onehot = torch.nn.functional.one_hot(torch.tensor([label]), model.config.classes).float()
    parts: list[Tensor] = []
    others: list[tuple[Tensor, Tensor]] = []
    count, tries = 0, 0
    limit = max_tries * wanted if minimum else wanted
    hopeless = limit if top_up else max(MIN_TRIES, HOPELESS_TRIES * wanted)
    while count < wanted and tries < limit and (count or tries < hopeless):
        size = min(DECODE_BATCH, limit - tries, max(wanted - count, MIN_DRAWN))
        codes = sampler(label, size, generator).to(device)
        pixels = (model.decode(codes, onehot.expand(size, -1).to(device)) * 255).round()
        if minimum:
            confidence = model.probabilities(model(pixels / 255).logits)[:, label]
            below = confidence < minimum
            if top_up:
                others.append((confidence[below], pixels[below].to(torch.uint8).cpu()))
            pixels = pixels[confidence >= minimum]
        parts.append(pixels.to(torch.uint8).cpu())
        count, tries = count + len(pixels), tries + size
    recognized = min(count, wanted)
    if top_up and count < wanted:
        order = torch.cat([confidence for confidence, _ in others]).argsort(descending=True, stable=True).cpu()
        parts.append(torch.cat([pixels for _, pixels in others])[order[: wanted - count]])
    return _Found(torch.cat(parts)[:wanted], recognized, tries)


def _rotate(images: Tensor, angles_rad: Tensor, fill: float) -> NDArray[np.uint8]:
    """Rotate upright uint8 [N, C, S, S] counter-clockwise: uint8 [N, S, S, C]."""
    if not len(images):
        return images.permute(0, 2, 3, 1).numpy()
    parts = []
    for upright, angles in zip(images.split(DECODE_BATCH), angles_rad.split(DECODE_BATCH), strict=True):
        pixels = upright
        if angles.any():
            floats = rotate(upright.float() / 255, angles.cos(), angles.sin(), fill)
            pixels = (floats * 255).round().clamp(0, 255).to(torch.uint8)
        parts.append(pixels.permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def check_out_free(out: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Paths of the images and of their contact sheet, which are one folder where `out` is a folder.

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

    A folder gets `<class>/<number>_<angle>.png` and `contact_sheet.png`. It is complete or absent.

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
    """Write one PNG an image, in folders by class, and the contact sheet."""
    assert data.angles_deg is not None
    for index, (image, label, angle) in enumerate(zip(data.images, data.labels, data.angles_deg, strict=True)):
        home = folder / file_name(names[label])
        home.mkdir(exist_ok=True)
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        picture.save(home / f"{index:05d}_{angle:+04.0f}.png")
    sheet.save(folder / CONTACT_SHEET)


def _folder_names(classes: Sequence[str]) -> list[str]:
    """Folder names of the classes: their own, except where a file system or our own reader would misread them."""
    names: list[str] = []
    for label, name in enumerate(classes):
        plain = re.sub(r"[/\\\0]", "_", name)
        taken = plain in names or plain.lower() in UNLABELLED
        if plain.startswith((".", "__")) or not plain.strip() or taken:
            plain = f"class_{label}_{plain.strip('._')}".rstrip("_")
        names.append(plain)
    return names


@torch.no_grad()
def derotate(model: AngleVAE, images: NDArray[np.uint8], angles_deg: NDArray[np.floating] | None) -> NDArray[np.uint8]:
    """Images uint8 [N, S, S, C] as the encoder sees them: masked, and rotated clockwise by the predicted angles [N].

    Without angles they are not rotated.
    """
    pixels = model.apply_mask(to_float(images))
    if angles_deg is not None:
        angles = torch.from_numpy(np.deg2rad(np.asarray(angles_deg, np.float64))).float()
        pixels = rotate(pixels, angles.cos(), -angles.sin(), model.config.fill)
    return _to_uint8(pixels)


@torch.no_grad()
def reconstruct(model: AngleVAE, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The decoder's images of uint8 [N, S, S, C]: upright, of the same shape."""
    model.eval()
    parts = [
        _to_uint8(model.enlarge(model(to_float(images[start : start + BATCH])).reconstruction))
        for start in range(0, len(images), BATCH)
    ]
    return np.concatenate(parts) if parts else images[:0]


@torch.no_grad()
def traverse(
    model: AngleVAE, codes: Tensor, label: int, deviations: Sequence[float], directions: int = 2
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Latent traversal: decode a class's mean code, moved along the principal directions of the class's codes.

    A direction's sign is free. Its largest entry is made positive, for the same picture on any machine.

    Args:
        model: trained.
        codes: [M, Z], of images of the class, M at least 3.
        label: the decoder's class.
        deviations: distances from the mean, in standard deviations of the codes along the direction.
        directions: number of directions, those with the greatest variance first.

    Returns:
        uint8 [directions, steps, S, S, C], and each direction's fraction of the codes' variance.

    Raises:
        DataError: fewer than three codes.
    """
    if len(codes) < 3:
        raise DataError(f"{len(codes)} codes of class {label}: principal directions need at least three; add images")
    values = codes.double()
    mean = values.mean(0)
    _, lengths, axes = torch.linalg.svd(values - mean, full_matrices=False)
    std = lengths / (len(values) - 1) ** 0.5
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    steps = torch.tensor(list(deviations), dtype=torch.float64)
    moves = (axes * largest.sign() * std[:, None])[:directions]
    moved = (mean + steps[None, :, None] * moves[:, None, :]).float()

    onehot = F.one_hot(torch.tensor([label]), model.config.classes).float().expand(moved[..., 0].numel(), -1)
    model.eval()
    pictures = _to_uint8(model.decode(moved.flatten(0, 1), onehot))
    fractions = (lengths.square() / lengths.square().sum().clamp_min(1e-30))[:directions]
    return pictures.reshape(*moved.shape[:2], *pictures.shape[1:]), fractions.numpy()


@dataclass(frozen=True)
class Samples:
    """Generated images uint8 [n, S, S, C] by class; and for each class without any, a sentence why."""

    images: Mapping[str, NDArray[np.uint8]]
    missing: Mapping[str, str]


def sample_per_class(
    model: AngleVAE,
    classes: Sequence[str],
    per_class: int,
    stored: RunSamples | None = None,
    absent: Sequence[str] = (),
    angles_deg: Sequence[float] = (0.0,),
    seed: int = 0,
) -> Samples:
    """Generate images by class; of a class that the model hardly recognizes there are fewer.

    `stored` has the codes of training images. Without it, codes are sampled around each class's mean.
    """
    found = generate_available(
        model,
        classes,
        per_class,
        None,
        angles_deg,
        seed=seed,
        absent=absent,
        codes=None if stored is None else stored.codes,
        code_labels=None if stored is None else stored.code_labels,
    )
    by_class = {name: found.images.images[found.images.labels == label] for label, name in enumerate(classes)}
    images = {name: pictures for name, pictures in by_class.items() if len(pictures)}
    return Samples(images, {name: why for name, why in found.missing.items() if name not in images})


def _to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
    """Float [N, C, S, S] in [0, 1] to uint8 [N, S, S, C]."""
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
