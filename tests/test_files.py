import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vae_edge.files import atomic_path, parse_json, read_bytes, read_json, sha256, write_json, write_text


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


def test_what_is_no_regular_file_is_refused_without_waiting_for_it(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    zero = tmp_path / "zero"
    zero.symlink_to("/dev/zero")
    for path, kind in ((pipe, "a named pipe"), (zero, "a device"), (tmp_path, "a folder")):
        for read in (sha256, read_json, lambda path: read_bytes(path, 10)):
            with pytest.raises((ValueError, IsADirectoryError), match=f"it is {kind}, not a regular file"):
                read(path)


def test_a_file_is_read_up_to_its_bound(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 11)
    assert read_bytes(path, 11) == b"x" * 11
    with pytest.raises(ValueError, match="it has 11 bytes, where 10 are the most"):
        read_bytes(path, 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested deeper than 32"),
        ("[" * 40 + "]" * 40, "nested deeper than 32"),
        ('{"a":' * 40 + "1" + "}" * 40, "nested deeper than 32"),
        ('{"a": 1, "a": 1}', "'a' stands twice"),
        ('[{"b": NaN}]', "NaN is not a number"),
        ("[1e999]", "beyond what a 64-bit float holds"),
        ("[-9223372036854775809]", "beyond 64 bits"),
        ("1" + "0" * 5000, "beyond 64 bits|limit"),
        ('"\\ud800"', "lone surrogate"),
        ('{"\\ud800": 1}', "lone surrogate"),
        (b"\xff", "utf-8"),
        ("", "Expecting value"),
    ],
)
def test_json_that_no_writer_of_ours_makes_is_refused(text: str | bytes, message: str):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_json_within_the_limits_is_read_as_the_standard_library_reads_it():
    text = "[" * 32 + '{"a": [1, -2.5, "é\\u00e9\\ud83d\\ude00", null, true, 9223372036854775807]}' + "]" * 32
    with pytest.raises(ValueError, match="nested"):
        parse_json(text)
    assert parse_json(text[2:-2]) == json.loads(text[2:-2])


def _left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".part")]


KILLED = """
    import os, signal
    from vae_edge.files import atomic_path
    with atomic_path({target!r}) as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_removed_by_the_next_writer_of_that_file(tmp_path: Path):
    target = tmp_path / "a.txt"
    subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED).format(target=str(target))], check=False)
    assert len(_left_over(tmp_path)) == 1
    others = tmp_path / ".b.txt.abcdefgh.part"
    others.write_text("of another file")
    write_text(target, "whole")
    assert _left_over(tmp_path) == [others.name]


def test_what_a_living_writer_holds_is_not_removed(tmp_path: Path):
    target = tmp_path / "a.txt"
    with atomic_path(target) as first:
        first.write_text("first")
        write_text(target, "second")
        assert first.read_text() == "first"
    assert target.read_text() == "first"
    assert _left_over(tmp_path) == []


def test_a_full_disk_is_reported_with_the_files_own_name(tmp_path: Path):
    target = tmp_path / "a.bin"
    program = textwrap.dedent(f"""
        import resource
        from vae_edge.files import write_bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_bytes({str(target)!r}, b"x" * 5000)
        except OSError as error:
            print(error.filename)
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(target)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_reported_with_the_files_own_name(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError) as raised:
        write_text(tmp_path / "a.txt", "")
    assert raised.value.filename == str(tmp_path / "a.txt")


def test_an_endless_integer_is_refused_in_linear_time():
    with pytest.raises(ValueError, match="beyond 64 bits"):
        parse_json("9" * 5_000_000)
