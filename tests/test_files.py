import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vae_edge.files import atomic_path, sha256, write_json, write_text


def test_a_failed_write_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path):
    target = tmp_path / "a.txt"
    write_text(target, "before")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("in the middle")
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path):
    target = tmp_path / "a.bin"
    write_text(target, "before")
    program = textwrap.dedent(f"""
        import resource, signal
        from vae_edge.files import write_bytes
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_bytes({str(target)!r}, b"x" * 5000)
        except OSError as error:
            print("refused", error.errno)
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused")
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_numbers_that_json_cannot_hold_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_sha256_is_the_published_one(tmp_path: Path):
    write_text(tmp_path / "a", "abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
