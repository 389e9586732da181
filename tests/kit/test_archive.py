"""Unpacking what came from elsewhere: only plain files land, and only where they belong."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from vae_edge.errors import BundleError
from vae_edge.kit import archive
from vae_edge.kit.archive import changed_file, unpack, write_archive, write_sums


def packed(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as made:
        for each in members:
            if isinstance(each, tarfile.TarInfo):
                made.addfile(each)
            else:
                member = tarfile.TarInfo(each[0])
                member.size = len(each[1])
                made.addfile(member, io.BytesIO(each[1]))
    return path


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "packed"
    (made / "bundle").mkdir(parents=True)
    (made / "a.txt").write_text("one")
    (made / "bundle" / "b.bin").write_bytes(b"\0\1")
    return made


def test_what_was_packed_comes_out_the_same_and_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("x.tar.gz", "y.tar.gz"):
        write_archive(tmp_path / name, folder, "top")
    assert (tmp_path / "x.tar.gz").read_bytes() == (tmp_path / "y.tar.gz").read_bytes()
    out = tmp_path / "out"
    out.mkdir()
    unpack(tmp_path / "x.tar.gz", out)
    assert {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()} == {
        "a.txt": b"one",
        "bundle/b.bin": b"\0\1",
    }
    with tarfile.open(tmp_path / "x.tar.gz") as made:
        assert {(m.uid, m.gid, m.uname, m.mtime) for m in made} == {(0, 0, "", 0)}


@pytest.mark.parametrize(
    "member",
    [
        ("/etc/passwd", b"x"),
        ("../outside", b"x"),
        ("top/../../outside", b"x"),
        ("top/..", b"x"),
        ("top/bundle/deeper/file", b"x"),
        ("file", b"x"),
        ("top/.hidden", b"x"),
        ("top/na\nme", b"x"),
        ("top/-option", b"x"),
        ("top/ünï", b"x"),
        special("top/link", tarfile.SYMTYPE, "/etc/passwd"),
        special("top/hard", tarfile.LNKTYPE, "top/a"),
        special("top/pipe", tarfile.FIFOTYPE),
        special("top/device", tarfile.CHRTYPE),
    ],
    ids=lambda member: ascii(member[0] if isinstance(member, tuple) else member.name),
)
def test_what_no_archive_of_ours_holds_is_refused(member: tuple[str, bytes] | tarfile.TarInfo, tmp_path: Path) -> None:
    out = tmp_path / "in" / "out"
    out.mkdir(parents=True)
    with pytest.raises(BundleError, match="no result of a kit, or is damaged"):
        unpack(packed(tmp_path / "x.tar.gz", ("top/a", b"a"), member), out)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "in", "out", "x.tar.gz"]


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    """A first member cannot make a folder lead elsewhere, since links are refused: nothing lands outside."""
    out = tmp_path / "out"
    out.mkdir()
    members = (special("top/bundle", tarfile.SYMTYPE, str(tmp_path)), ("top/bundle/x", b"x"))
    with pytest.raises(BundleError):
        unpack(packed(tmp_path / "x.tar.gz", *members), out)
    assert not (tmp_path / "x").exists() and not any(out.iterdir())


def test_limits_hold_on_number_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    many = packed(tmp_path / "many.tar.gz", *((f"top/{k}", b"") for k in range(archive.MAX_RESULT_FILES + 1)))
    with pytest.raises(BundleError, match="more than 256 files"):
        unpack(many, out)
    monkeypatch.setattr(archive, "MAX_RESULT_BYTES", 1 << 20)
    bomb = packed(tmp_path / "bomb.tar.gz", ("top/zeros", bytes(2 << 20)))
    assert bomb.stat().st_size < 10_000
    with pytest.raises(BundleError, match="more than 1 MiB"):
        unpack(bomb, out)
    assert not (out / "zeros").exists()


def test_a_file_twice_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(BundleError, match="a file twice"):
        unpack(packed(tmp_path / "x.tar.gz", ("top/a", b"1"), ("top/a", b"2")), out)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-4] + b"\0\0\0\0",
        lambda content: b"",
        lambda content: b"no archive at all",
        lambda content: gzip.compress(b"no tar inside" * 100),
    ],
    ids=["cut", "sum", "empty", "text", "no tar"],
)
def test_damage_is_a_sentence(folder: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    whole = tmp_path / "x.tar.gz"
    (folder / "noise").write_bytes(os.urandom(100_000))
    write_archive(whole, folder, "top")
    whole.write_bytes(damage(whole.read_bytes()))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(BundleError, match=r"x\.tar\.gz is no result of a kit, or is damaged"):
        unpack(whole, out)


def test_a_missing_file_or_a_folder_is_a_sentence(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none", "No such file"), (tmp_path, "is a folder")):
        with pytest.raises(BundleError, match=words):
            unpack(path, tmp_path)


def test_sums_are_those_of_sha256sum_and_find_what_changed(folder: Path) -> None:
    names = ["a.txt", "bundle/b.bin"]
    write_sums(folder, names, "SUMS")
    assert (folder / "SUMS").read_text().splitlines()[0] == (
        "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed  a.txt"  # printf one | sha256sum
    )
    assert changed_file(folder, "SUMS", 1 << 20) is None
    (folder / "bundle" / "b.bin").write_bytes(b"\0\2")
    assert changed_file(folder, "SUMS", 1 << 20) == "bundle/b.bin"
    (folder / "a.txt").unlink()
    assert changed_file(folder, "SUMS", 1 << 20) == "a.txt"
    (folder / "SUMS").write_text("nonsense\n")
    with pytest.raises(ValueError, match="is not a sum and a name"):
        changed_file(folder, "SUMS", 1 << 20)
