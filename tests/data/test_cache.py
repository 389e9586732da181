"""The cache of decoded images: nothing is decoded twice, whatever happens to the files, the disk or the cache."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vae_edge.cli import main
from vae_edge.data import Dataset, image_writer, load_dataset, prepare
from vae_edge.data import cache as module
from vae_edge.data.images import as_view
from vae_edge.errors import ConfigError
from vae_edge.preprocess import InputSpec, prepare_image


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, for sets of any size, whose files are believed at once."""
    monkeypatch.setenv(module.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(module, "MIN_FILES", 1)
    monkeypatch.setattr(module, "_RACY_NS", 0)
    return tmp_path / "cache"


@pytest.fixture(params=["in memory", "in a file"])
def cached(cache: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, where images stay in memory, or where they are mapped."""
    if request.param == "in a file":
        for place in (module, image_writer):
            monkeypatch.setattr(place, "MAX_IN_MEMORY_BYTES", 0)
    return cache


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Grey drawings of two classes, of which one is stored in colour, and one is broken; a class is tiny."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("a", "b")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(6):
            pixels = rng.integers(0, 80, (40, 50), dtype=np.uint8) + 90 * label
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{index}.png")
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "data" / "a" / "colour.jpg", quality=60)
    whole = (tmp_path / "data" / "b" / "5.png").read_bytes()
    (tmp_path / "data" / "b" / "cut.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path / "data"


class Count:
    """How many files were decoded, and how many read for their digest, since `taken`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded = self.read = 0
        for place, name, counter in ((prepare, "prepare_image", "decoded"), (module, "_content_digest", "read")):
            self._watch(monkeypatch, place, name, counter)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, counter: str) -> None:
        function = getattr(place, name)

        def run(*arguments: Any, **options: Any) -> Any:
            setattr(self, counter, getattr(self, counter) + 1)
            return function(*arguments, **options)

        monkeypatch.setattr(place, name, run)

    def taken(self) -> tuple[int, int]:
        found, self.decoded, self.read = (self.decoded, self.read), 0, 0
        return found


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Count:
    return Count(monkeypatch)


def same(one: Dataset, other: Dataset) -> bool:
    return (
        one.fingerprint() == other.fingerprint()
        and (one.input, one.notes) == (other.input, other.notes)
        and [entry.path for entry in one.left_out] == [entry.path for entry in other.left_out]
    )


def test_the_second_load_decodes_only_what_is_broken_and_is_the_same(cached: Path, data: Path, count: Count) -> None:
    plain = load_dataset(data, cache=False)
    assert count.taken()[1] == 0 and not cached.exists()
    first = load_dataset(data)
    assert count.taken()[0] >= 13 and same(first, plain)
    second = load_dataset(data)
    assert count.taken() == (1, 0) and same(second, plain)
    assert [entry.error for entry in second.left_out] == [entry.error for entry in plain.left_out]
    assert (as_view(second.train.images) is not None) == (module.MAX_IN_MEMORY_BYTES == 0)
    assert not list(cached.glob(".*"))  # nothing is left of the writing


def test_a_models_settings_find_the_images_that_were_chosen_for_training(
    cached: Path, data: Path, count: Count
) -> None:
    chosen = load_dataset(data)
    count.taken()
    again = load_dataset(data, prepared_as=replace(chosen.input, background="dark"))
    assert count.taken() == (1, 0) and again.fingerprint() == chosen.fingerprint()
    other = load_dataset(data, prepared_as=InputSpec(32, 3))
    assert count.taken()[0] == 14 and other.train.images.shape[1:] == (32, 32, 3)


def test_a_moved_or_touched_folder_is_read_but_not_decoded(
    cached: Path, data: Path, tmp_path: Path, count: Count
) -> None:
    first = load_dataset(data)
    count.taken()
    data.rename(tmp_path / "moved")
    moved = load_dataset(tmp_path / "moved")
    assert count.taken() == (1, 14) and moved.fingerprint() == first.fingerprint()
    assert "moved" in moved.left_out[0].error  # and errors name the files where they are now
    for path in (tmp_path / "moved").rglob("*.png"):
        os.utime(path)
    load_dataset(tmp_path / "moved")
    assert count.taken() == (1, 13)


def test_a_changed_added_or_removed_file_is_seen(cached: Path, data: Path, count: Count) -> None:
    before = load_dataset(data)
    changed = data / "a" / "3.png"
    times = changed.stat()
    pixels = np.asarray(Image.open(changed)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(changed)
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))  # even with the time that it had
    after = load_dataset(data)
    assert after.fingerprint() != before.fingerprint()
    assert after.fingerprint() == load_dataset(data, cache=False).fingerprint()
    changed.unlink()
    assert len(load_dataset(data).train) == len(before.train) - 1


def test_a_file_that_may_change_within_its_times_is_read_again(
    cache: Path, data: Path, count: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RACY_NS", 10**15)  # everything is too young to be believed
    for _ in range(2):
        load_dataset(data)
        assert count.taken()[1] == 14


@pytest.mark.parametrize("how", ["pixel", "end", "short", "empty", "magic", "shape"])
def test_a_damaged_file_is_made_anew(cached: Path, data: Path, count: Count, how: str) -> None:
    first = load_dataset(data)
    count.taken()
    (path,) = cached.glob("images-*.bin")
    whole = path.read_bytes()
    damaged = {
        "pixel": whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:],
        "end": whole[:-1],
        "short": whole[: len(whole) // 2],
        "empty": b"",
        "magic": whole[:-8] + b"another!",
        "shape": whole.replace(b'"shape": [13', b'"shape": [99'),
    }[how]
    assert damaged != whole
    path.unlink()  # whoever has mapped the file keeps it as it was
    path.write_bytes(damaged)
    again = load_dataset(data)
    assert count.taken()[0] >= 13 and same(again, first) and path.read_bytes() == whole
    load_dataset(data)
    assert count.taken()[0] == 1


@pytest.mark.parametrize("kind", ["choice-*.json", "files-*.bin"])
@pytest.mark.parametrize("content", [b"", b"{}", b'{"input": {"size": -1}, "notes": []}', b"\x93NUMPY\x01\0x"])
def test_damaged_notes_are_made_anew(cache: Path, data: Path, kind: str, content: bytes) -> None:
    first = load_dataset(data)
    (path,) = cache.glob(kind)
    path.write_bytes(content)
    assert same(load_dataset(data), first)
    assert path.read_bytes() != content


def test_other_code_that_prepares_finds_nothing_of_before(
    cache: Path, data: Path, count: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_dataset(data)
    count.taken()
    monkeypatch.setattr(module, "_code", lambda: b"another version")
    load_dataset(data)
    assert count.taken()[0] >= 13


def test_a_full_disk_is_a_warning_and_images_stay_in_memory(
    cache: Path, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = load_dataset(data, cache=False)
    for place in (module, image_writer):
        monkeypatch.setattr(place, "MAX_IN_MEMORY_BYTES", 0)
    write, written = image_writer.ImageWriter._write, 0

    def full(self: Any, content: memoryview) -> None:
        nonlocal written
        written += 1
        if written > 5:
            self._file.write(bytes(content)[:100])  # a part fits
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, content)

    monkeypatch.setattr(image_writer.ImageWriter, "_write", full)
    with caplog.at_level(logging.WARNING, "vae_edge"):
        found = load_dataset(data)
    assert same(found, plain) and as_view(found.train.images) is None
    assert len([record for record in caplog.records if "No space left" in record.getMessage()]) == 1
    assert not list(cache.glob("images-*")) and not list(cache.glob(".*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_cannot_be_written_is_a_warning(
    cached: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cached.mkdir(mode=0o500)
    with caplog.at_level(logging.WARNING, "vae_edge"):
        load_dataset(data)
    assert "the cache of decoded images cannot be written" in caplog.text


def test_a_file_in_the_caches_place_is_a_warning(cached: Path, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    cached.write_text("a file")
    with caplog.at_level(logging.WARNING, "vae_edge"):
        found = load_dataset(data)
    assert len(found.train) == 13 and caplog.text.count("the cache of decoded images cannot be written") == 1


def test_what_was_used_least_recently_is_removed_and_the_newest_stays(
    cache: Path, data: Path, monkeypatch: pytest.MonkeyPatch, count: Count
) -> None:
    sizes = (28, 30, 32)
    for size in sizes:
        load_dataset(data, size=size, channels=1, fit="pad")
    assert len(list(cache.glob("images-*.bin"))) == 3
    now = time.time()
    for age, path in enumerate(sorted(cache.glob("*"), key=lambda path: path.stat().st_mtime, reverse=True)):
        os.utime(path, (now - 60 * age, now - 60 * age))
    load_dataset(data, size=28, channels=1, fit="pad")  # used again: the youngest
    total = sum(path.stat().st_size for path in cache.glob("*"))
    monkeypatch.setenv(module.LIMIT_VARIABLE, str(total))
    load_dataset(data, size=34, channels=1, fit="pad")
    count.taken()
    left = []
    for size in (28, 34, 32, 30):
        load_dataset(data, size=size, channels=1, fit="pad")
        left.append(count.taken()[0] == 1)
    assert left[:2] == [True, True] and left[3] is False
    monkeypatch.setenv(module.LIMIT_VARIABLE, "0")
    load_dataset(data, size=40, channels=1, fit="pad")
    assert len(list(cache.glob("images-*.bin"))) == 1
    monkeypatch.setenv(module.LIMIT_VARIABLE, "much")
    with pytest.raises(ConfigError, match="is a number of bytes"):
        load_dataset(data)


def test_small_sets_are_not_cached(cache: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_FILES", 100)
    load_dataset(data)
    assert not cache.exists()


def test_the_folder_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value, expected in (
        (module.CACHE_VARIABLE, str(tmp_path / "x"), tmp_path / "x"),
        ("XDG_CACHE_HOME", str(tmp_path / "y"), tmp_path / "y" / "vae-edge"),
        ("XDG_CACHE_HOME", "relative", tmp_path / ".cache" / "vae-edge"),
        ("XDG_CACHE_HOME", "", tmp_path / ".cache" / "vae-edge"),
    ):
        monkeypatch.delenv(module.CACHE_VARIABLE, raising=False)
        monkeypatch.setenv(name, value)
        assert module.cache_folder() == expected


def test_two_processes_at_once_give_the_same(cached: Path, data: Path) -> None:
    code = (
        "import sys; from vae_edge.data import cache, image_writer, load_dataset; cache.MIN_FILES = 1; "
        f"cache.MAX_IN_MEMORY_BYTES = image_writer.MAX_IN_MEMORY_BYTES = {module.MAX_IN_MEMORY_BYTES}; "
        f"print(load_dataset({str(data)!r}).fingerprint())"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    found = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert found == {load_dataset(data, cache=False).fingerprint()}


def test_what_a_killed_process_left_is_removed(cache: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_writer, "MAX_IN_MEMORY_BYTES", 0)
    cache.mkdir()
    (cache / ".images.bin.abcdefgh.part").write_bytes(bytes(1000))
    load_dataset(data)
    assert not list(cache.glob(".*"))


def test_the_writer_holds_images_in_memory_and_in_files_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 3), dtype=np.uint8)
    images[2] = images[2, ..., :1]
    for limit in (0, 1 << 20):
        monkeypatch.setattr(image_writer, "MAX_IN_MEMORY_BYTES", limit)
        with image_writer.ImageWriter(9, (3, 4, 3), tmp_path) as writer:
            assert writer.images().shape == (0, 3, 4, 3)
            for index, image in enumerate(images):
                writer.append(image[..., :1] if index == 2 else image)
            found = writer.images()
        assert (as_view(found) is None) == bool(limit) and (np.asarray(found) == images).all()
        assert not list(tmp_path.iterdir())  # it was not kept, and what was taken can still be read


@pytest.mark.slow
def test_training_to_prediction_on_images_in_a_file_is_as_on_images_in_memory(
    cache: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    for name in "ab":
        for index in range(30):
            shutil.copy(data / name / f"{index % 6}.png", data / name / f"x{index}.png")
            with Image.open(data / name / f"x{index}.png") as image:
                image.putpixel((index, 0), 255)
                image.save(data / name / f"x{index}.png")
    (data / "unlabelled").mkdir()
    shutil.copy(data / "a" / "x1.png", data / "unlabelled" / "y.png")
    cheap = (
        "--preset",
        "tiny",
        "--rotation",
        "none",
        "--epochs",
        "2",
        "--batch",
        "16",
        "--patience",
        "5",
        "--size",
        "32",
    )
    found = []
    for limit, options in ((64 << 20, ["--no-cache"]), (0, [])):
        for place in (module, image_writer):
            monkeypatch.setattr(place, "MAX_IN_MEMORY_BYTES", limit)
        run, bundle = tmp_path / f"run{limit}", tmp_path / f"bundle{limit}"
        steps = (
            ("train", "--data", data, *cheap, "--labels-per-class", 20, "--out", run),
            ("evaluate", run, "--data", data, "--split", "all"),
            ("export", run, "--out", bundle),
            ("quantize", bundle, "--data", data, "--precision", "int8", "--force"),
            ("data", "show", data, "--contact-sheet", tmp_path / "sheet.png"),
        )
        results = []
        for step in steps:
            extra = options if step[0] != "export" else []
            assert main([*map(str, step), *extra, "--json"]) == 0, step
            results.append(json.loads(capsys.readouterr().out))
        found.append(
            (
                results[0]["validation"],
                results[1]["accuracy"],
                results[1]["confusion"],
                results[3]["before"],
                results[4],
            )
        )
    assert found[0] == found[1]
    assert list(cache.glob("images-*.bin"))


def test_prepared_images_are_those_of_the_preparation(cached: Path, data: Path) -> None:
    for _ in range(2):
        found = load_dataset(data)
        for name, pixels in zip(found.train.files, found.train.images, strict=True):
            assert (prepare_image(data / name, found.input)[0] == pixels).all()
