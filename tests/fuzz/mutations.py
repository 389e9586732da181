"""Inputs that are nearly right: valid files with some bytes, or some values, changed. The same seed gives the same."""

from __future__ import annotations

import copy
import io
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vae_edge.errors import VaeEdgeError

EXAMPLES, EACH = 100, 21
"""Hypothesis draws so many seeds; of each come so many inputs: 2,100 a reader."""
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 28, 1_000_000, 2**31, 2**63 - 1, 10**30, -(10**30), 0.5, -0.0, 1e308, -1e308,
    float("nan"), float("inf"), "", "a", "\0", "\ud800", "\x1b[2J", "é" * 300, "../x", "/", "x" * 5000, "nan", [], {},
    [[]], [{}], {"": None}, [1, "a", None], [float("nan")], [0] * 300, ["a", "a"], {"a": {"a": {"a": []}}},
]  # fmt: skip


def seeds(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test with an argument `rng`, the same ones each time."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    same = settings(max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=quiet)
    return same(given(rng=st.integers(0, 2**32).map(random.Random))(test))


def outcome(read: Callable[[], Any]) -> Any:
    """What a reader gives, or None where it refuses with an error of our family; anything else fails the test."""
    try:
        return read()
    except VaeEdgeError as error:
        assert str(error).strip(), "an error without a sentence"
        str(error).encode("utf-8")
        return None


def bytes_changed(content: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut out, put in twice or cut off."""
    made = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(made) + 1)
        span = rng.choice((1, 2, 4, 8, 64))
        kind = rng.randrange(6)
        if kind == 0:
            made[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            made[at : at + 1] = bytes([made[at] ^ 1 << rng.randrange(8)]) if at < len(made) else b"\0"
        elif kind == 2:
            del made[at : at + span]
        elif kind == 3:
            made[at:at] = made[at : at + span]
        elif kind == 4:
            made[at : at + span] = rng.choice((b"\xff", b"\0", b"\x7f", b"\x80")) * span
        else:
            del made[at:]
        if not made:
            return bytes(made)
    return bytes(made)


def json_changed(value: Any, rng: random.Random) -> bytes:
    """JSON with a few values replaced, removed, repeated or nested, or some bytes changed."""
    made = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(made))
        if not places:
            break
        parent, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        elif kind == 2:
            parent[key] = [parent[key]]
        elif kind == 3:
            parent[key] = copy.deepcopy(rng.choice(places)[0])
        else:
            parent[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    text = json.dumps(made, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.02:
        depth = rng.choice((40, 1000, 100_000))
        return b"[" * depth + b"]" * depth
    return bytes_changed(text, rng) if rng.random() < 0.25 else text


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def archive_changed(content: bytes, rng: random.Random) -> bytes:
    """A zip archive with a member changed and packed again, so that its sums are right; or with bytes changed."""
    if rng.random() < 0.4:
        return bytes_changed(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    changed = 128 if rng.random() < 0.7 else len(members[name])
    members[name] = bytes_changed(members[name][:changed], rng) + members[name][changed:]
    if rng.random() < 0.1:
        del members[name]
    made = io.BytesIO()
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2)
    method = rng.choices(methods, (4, 4, 1, 1))[0]
    with zipfile.ZipFile(made, "w", method) as archive:
        for each, data in members.items():
            archive.writestr(each, data)
    return made.getvalue()
