"""Large images: the same pixels as when they are converted as a whole, and memory that stays bounded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from vae_edge.errors import DataError
from vae_edge.preprocess import InputSpec, open_image, prepare_image
from vae_edge.spec import MAX_LINES

ALLOWED = 4
"""How many times the decoded bytes of one image (width · height · channels) are taken at most."""


def pattern(width: int, height: int) -> Image.Image:
    """Grey, of every value, that no row or column repeats."""
    across, down = np.arange(width) // 8 % 256, np.arange(height) // 8 % 256
    return Image.fromarray((across[None] ^ down[:, None]).astype(np.uint8))


def colours(grey: Image.Image, bands: str = "RGB") -> Image.Image:
    """Every band another turn of the pattern."""
    turned = [grey, *(grey.transpose(way) for way in (0, 1, 3))]
    return Image.merge(bands, turned[: len(bands)])


def palette(grey: Image.Image) -> Image.Image:
    grey.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    return grey


def sixteen_bit(grey: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)


def as_a_whole(image: Image.Image, spec: InputSpec) -> np.ndarray:
    """What `prepare_image` documents, by Pillow on the whole image: reduce, pad with the border's colour, shrink."""
    if max(image.size) >= 4096:
        image = image.reduce(max(image.size) // 2048)
    pixels = np.asarray(image)
    ring = np.concatenate((pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]))
    colour = np.round(np.median(ring, axis=0)).astype(np.uint8)
    side = max(image.size)
    square = np.empty((side, side, *pixels.shape[2:]), np.uint8)
    square[...] = colour
    top, left = (side - image.height) // 2, (side - image.width) // 2
    square[top : top + image.height, left : left + image.width] = pixels
    small = Image.fromarray(square).resize((spec.size, spec.size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(small).reshape(spec.size, spec.size, -1)


@pytest.mark.parametrize("size", [(2600, 1900), (3000, 37), (5, 4095), (4500, 4100), (70_000, 3)])
@pytest.mark.parametrize("bands", ["L", "RGB"])
def test_a_large_image_gives_the_pixels_of_one_that_is_converted_as_a_whole(size: tuple[int, int], bands: str) -> None:
    image = pattern(*size) if bands == "L" else colours(pattern(*size))
    spec = InputSpec(64, len(bands), "none")
    np.testing.assert_array_equal(prepare_image(image, spec)[0], as_a_whole(image, spec))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(60, 31), (2500, 1800)])
def test_orientations_are_those_of_pillow(tmp_path: Path, orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    colours(pattern(*size)).save(tmp_path / "x.png", exif=exif, compress_level=1)
    with Image.open(tmp_path / "x.png") as image:
        expected = ImageOps.exif_transpose(image)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "x.png")), np.asarray(expected))
    spec = InputSpec(64, 3, "none")
    np.testing.assert_array_equal(prepare_image(tmp_path / "x.png", spec)[0], as_a_whole(expected, spec))


def test_a_large_grey_palette_is_grey_and_a_webp_is_what_pillow_decodes(tmp_path: Path) -> None:
    grey = pattern(2500, 1800)
    grey.putpalette([value for step in range(256) for value in (step, step, step)])
    assert grey.mode == "P" and open_image(grey).mode == "L"
    for bands in ("RGB", "RGBA"):
        image = colours(pattern(2500, 1800), bands)
        if bands == "RGBA":
            image.putalpha(255)
        image.save(tmp_path / "x.webp", lossless=True, quality=0, method=0)
        np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "x.webp")), np.asarray(image.convert("RGB")))


def test_a_column_of_millions_of_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    for height, refused in ((MAX_LINES, False), (MAX_LINES + 1, True)):
        path = tmp_path / "tall.png"
        Image.new("L", (1, height), 9).save(path)
        if refused:
            with pytest.raises(DataError, match=rf"tall.png .* 1×{height}; expected at most 4 million lines"):
                prepare_image(path, InputSpec(28, 1))
        else:
            assert set(np.unique(prepare_image(path, InputSpec(28, 1))[0])) == {9}


MEASURE = """
import sys, threading
from PIL import Image
Image.init()
from vae_edge.preprocess import InputSpec, prepare_image
spec = InputSpec(64, 3, "none")
for mode in ("RGBA", "P"):
    prepare_image(Image.new(mode, (640, 512)), spec, fit="foreground")

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

path, fit, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
before = peak()
workers = [threading.Thread(target=prepare_image, args=(path, spec, "never", fit)) for _ in range(threads)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
print(peak() - before)
"""


def peak_bytes(path: Path, fit: str = "pad", threads: int = 1) -> int:
    """Of a fresh process that prepares the image, above what it takes before."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(part for part in sys.path if part),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", MEASURE, str(path), fit, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)


Make = Callable[[Image.Image], Image.Image]
MODES: dict[str, tuple[str, int, Make, dict[str, object]]] = {
    "1": ("png", 1, lambda grey: grey.point(lambda v: 255 * (v > 99)).convert("1"), {}),
    "L": ("png", 1, lambda grey: grey, {}),
    "P": ("png", 1, palette, {}),
    "P, transparent": ("png", 1, palette, {"transparency": 3}),
    "RGB": ("png", 3, colours, {}),
    "RGBA": ("png", 4, lambda grey: colours(grey, "RGBA"), {}),
    "LA": ("png", 2, lambda grey: colours(grey, "LA"), {}),
    "I;16": ("png", 1, sixteen_bit, {}),
    "L, JPEG": ("jpg", 1, lambda grey: grey, {}),
    "RGB, JPEG": ("jpg", 3, colours, {}),
    "RGB, progressive JPEG": ("jpg", 3, colours, {"progressive": True, "subsampling": 0}),
    "CMYK, JPEG": ("jpg", 4, lambda grey: colours(grey, "CMYK"), {}),
    "RGB, TIFF": ("tif", 3, colours, {"compression": "tiff_lzw"}),
    "L, TIFF": ("tif", 1, lambda grey: grey, {}),
    "I;16, TIFF": ("tif", 1, sixteen_bit, {"compression": "tiff_lzw"}),
    "CMYK, TIFF": ("tif", 4, lambda grey: colours(grey, "CMYK"), {"compression": "tiff_adobe_deflate"}),
    "RGB, WebP": ("webp", 4, colours, {"quality": 50, "method": 0}),  # libwebp decodes to four channels
    "RGBA, WebP": ("webp", 4, lambda grey: colours(grey, "RGBA"), {"quality": 50, "method": 0}),
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_peak_memory_is_at_most_four_times_the_decoded_image(tmp_path: Path, mode: str) -> None:
    suffix, channels, make, options = MODES[mode]
    path, exif = tmp_path / f"x.{suffix}", Image.Exif()
    exif[0x0112] = 6
    if suffix == "png":
        options = {"compress_level": 1, **options}
    make(pattern(9000, 7000)).save(path, **options, **({"exif": exif} if suffix in ("png", "jpg") else {}))
    for fit in ("pad", "foreground"):
        peak, decoded = peak_bytes(path, fit), 9000 * 7000 * channels
        assert peak <= ALLOWED * decoded, f"{peak / decoded:.2f} times the decoded bytes, fit {fit}"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["P", "RGBA", "LA"])
def test_pages_that_are_not_reduced_first_take_no_more(tmp_path: Path, mode: str) -> None:
    _, channels, make, _ = MODES[mode]
    make(pattern(4000, 4000)).save(tmp_path / "x.png", compress_level=1)
    assert peak_bytes(tmp_path / "x.png", "foreground") <= ALLOWED * 4000 * 4000 * channels


@pytest.mark.slow
@pytest.mark.parametrize("size", [(60_000_000, 1), (4095, 1), (1, 4_000_000)])
def test_strips_cost_no_square_of_their_length(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (9, 8, 7)).save(tmp_path / "strip.png")
    assert peak_bytes(tmp_path / "strip.png") <= max(ALLOWED * size[0] * size[1] * 3, 64 << 20)


@pytest.mark.slow
def test_threads_do_not_decode_huge_images_at_once(tmp_path: Path) -> None:
    palette(pattern(9000, 7000)).save(tmp_path / "x.png", compress_level=1)
    assert peak_bytes(tmp_path / "x.png", threads=6) <= ALLOWED * 9000 * 7000


@pytest.mark.slow
def test_threads_together_take_no_more_than_the_budget(tmp_path: Path) -> None:
    colours(pattern(4000, 3000)).save(tmp_path / "x.jpg", quality=80)
    budget, pieces = 256 << 20, 64 << 20
    assert peak_bytes(tmp_path / "x.jpg", threads=32) <= budget + pieces


def test_a_budget_lets_one_in_that_is_larger_and_keeps_the_order() -> None:
    import threading
    import time

    from vae_edge.decoding import _DecodeBudget

    budget, inside, most, lock = _DecodeBudget(10), 0, 0, threading.Lock()

    def work(amount: int) -> None:
        nonlocal inside, most
        with budget.take(amount):
            with lock:
                inside += amount
                most = max(most, inside)
            time.sleep(0.002)
            with lock:
                inside -= amount

    threads = [threading.Thread(target=work, args=(amount,)) for amount in (3, 25, 4, 3, 3, 25, 9, 1) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads) and most == 25
