from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_makers import idx_bytes

from vae_edge.data import fetch as fetching
from vae_edge.data import load_dataset
from vae_edge.data.fetch import Limits, PublicFile, PublicSet, fetch_dataset
from vae_edge.errors import ConfigError, DataError

NOISE = np.random.default_rng(0).integers(0, 256, (500, 28, 28), dtype=np.uint8)
CONTENT = {
    "train-images-idx3-ubyte.gz": idx_bytes(NOISE),
    "train-labels-idx1-ubyte.gz": idx_bytes((np.arange(500) % 10).astype(np.uint8)),
}
PACKED = {name: gzip.compress(content, mtime=0) for name, content in CONTENT.items()}
IMAGES, LABELS = CONTENT


@dataclass
class Shop:
    """A server of files on the loopback, and how it misbehaves."""

    files: dict[str, bytes] = field(default_factory=lambda: dict(PACKED))
    ranges: bool = True
    drop_after: int | None = None
    """Break each connection after so many bytes of the body."""
    fail_first: int = 0
    """Answer 503 so many times before anything else."""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""

    def asked(self, name: str) -> list[str | None]:
        return [wanted for path, wanted in self.requests if path.endswith(name)]


def handler_for(shop: Shop) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Keep the tests' output clean."""

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            shop.requests.append((self.path, wanted))
            body = shop.files.get(self.path.rsplit("/", 1)[-1])
            if shop.fail_first > 0:
                shop.fail_first -= 1
                self.send_error(503)
                return
            if body is None:
                self.send_error(404)
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and shop.ranges else 0
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            stop = len(body) if shop.drop_after is None else start + shop.drop_after
            self.wfile.write(body[start:stop])

    return Handler


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    files = tuple(PublicFile(name, len(body), hashlib.sha256(body).hexdigest()) for name, body in CONTENT.items())
    made = Shop()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_for(made))
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setitem(fetching.DATA_SETS, "tiny", PublicSet(files, (f"{made.url}/first/", f"{made.url}/second/")))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


def get(folder: Path, **options: Any) -> Path:
    return fetch_dataset("tiny", folder, limits=Limits(wait_s=0), **options)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "tiny").iterdir())


def test_what_was_fetched_is_a_data_set(tmp_path: Path, shop: Shop) -> None:
    assert get(tmp_path) == tmp_path / "tiny"
    assert listing(tmp_path) == sorted(PACKED)
    assert (load_dataset(tmp_path / "tiny").train.images[..., 0] == NOISE).all()


def test_what_is_there_and_right_is_not_fetched_again_plain_or_packed(tmp_path: Path, shop: Shop) -> None:
    get(tmp_path)
    (tmp_path / "tiny" / IMAGES).unlink()
    (tmp_path / "tiny" / IMAGES.removesuffix(".gz")).write_bytes(CONTENT[IMAGES])
    shop.requests.clear()
    get(tmp_path)
    assert shop.requests == []


def test_what_is_there_but_wrong_is_replaced(tmp_path: Path, shop: Shop) -> None:
    get(tmp_path)
    path = tmp_path / "tiny" / IMAGES
    path.write_bytes(path.read_bytes()[:-1])
    get(tmp_path)
    assert path.read_bytes() == PACKED[IMAGES]


def test_a_part_is_resumed_where_it_ends(tmp_path: Path, shop: Shop) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / f"{IMAGES}.part").write_bytes(PACKED[IMAGES][:1000])
    get(tmp_path)
    assert shop.asked(IMAGES) == ["bytes=1000-"] and listing(tmp_path) == sorted(PACKED)


def test_a_part_that_is_whole_is_taken(tmp_path: Path, shop: Shop) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / f"{IMAGES}.part").write_bytes(PACKED[IMAGES])
    get(tmp_path)
    assert len(shop.asked(IMAGES)) == 1 and listing(tmp_path) == sorted(PACKED)


def test_a_part_of_something_else_is_fetched_from_the_start(tmp_path: Path, shop: Shop) -> None:
    (tmp_path / "tiny").mkdir()
    for wrong in (b"x" * 1000, b"x" * (len(PACKED[IMAGES]) + 5)):
        (tmp_path / "tiny" / IMAGES).unlink(missing_ok=True)
        (tmp_path / "tiny" / f"{IMAGES}.part").write_bytes(wrong)
        get(tmp_path)
        assert listing(tmp_path) == sorted(PACKED)


def test_a_server_without_ranges_is_read_from_the_start(tmp_path: Path, shop: Shop) -> None:
    shop.ranges = False
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / f"{IMAGES}.part").write_bytes(PACKED[IMAGES][:1000])
    get(tmp_path)
    assert shop.asked(IMAGES) == ["bytes=1000-"] and listing(tmp_path) == sorted(PACKED)


def test_dropped_connections_are_resumed_until_the_file_is_whole(tmp_path: Path, shop: Shop) -> None:
    shop.drop_after = 100_000
    get(tmp_path)
    starts = [int(str(wanted)[6:-1]) for wanted in shop.asked(IMAGES) if wanted]
    assert starts == [100_000, 200_000, 300_000] and listing(tmp_path) == sorted(PACKED)


def test_a_connection_that_gives_nothing_is_given_up_and_its_part_kept(tmp_path: Path, shop: Shop) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / f"{IMAGES}.part").write_bytes(PACKED[IMAGES][:1000])
    shop.drop_after = 0
    with pytest.raises(DataError, match=f"failed {Limits().tries} times in a row"):
        get(tmp_path)
    assert listing(tmp_path) == [f"{IMAGES}.part"]
    shop.drop_after = None
    get(tmp_path)
    assert listing(tmp_path) == sorted(PACKED)


def test_a_busy_server_is_asked_again(tmp_path: Path, shop: Shop) -> None:
    shop.fail_first = 3
    get(tmp_path)
    assert len(shop.asked(IMAGES)) == 4


def test_wrong_bytes_leave_nothing_under_the_final_name(tmp_path: Path, shop: Shop) -> None:
    other = gzip.compress(CONTENT[IMAGES][:-1] + b"\0", mtime=0)
    bomb = gzip.compress(CONTENT[IMAGES] + bytes(50_000_000))
    for wrong in (other, bomb, b"<html>please log in</html>", PACKED[IMAGES][:-20]):
        shop.files[IMAGES] = wrong
        with pytest.raises(DataError, match=f"{IMAGES} could not be fetched.*(published content|at most)") as caught:
            get(tmp_path)
        assert "/first/" in str(caught.value) and "/second/" in str(caught.value)
        assert listing(tmp_path) == []


def test_a_missing_file_is_looked_for_on_the_next_mirror_and_then_named(tmp_path: Path, shop: Shop) -> None:
    del shop.files[LABELS]
    with pytest.raises(DataError, match="HTTP 404") as caught:
        get(tmp_path)
    assert "/first/" in str(caught.value) and "/second/" in str(caught.value)
    assert len(shop.asked(LABELS)) == 2 and listing(tmp_path) == [IMAGES]


def test_a_base_address_replaces_the_mirrors(tmp_path: Path, shop: Shop) -> None:
    get(tmp_path, base_url=f"{shop.url}/mine")
    assert all(path.startswith("/mine/") for path, _ in shop.requests) and shop.requests


def test_nobody_listening_is_a_sentence(tmp_path: Path, shop: Shop) -> None:
    with pytest.raises(DataError, match="refused"):
        get(tmp_path, base_url="http://127.0.0.1:9/")


def test_progress_counts_up_to_the_whole(tmp_path: Path, shop: Shop) -> None:
    seen: list[tuple[str, int, int | None]] = []
    get(tmp_path, progress=lambda *told: seen.append(told))
    images = [(done, total) for name, done, total in seen if name == IMAGES]
    size = len(PACKED[IMAGES])
    assert images[-1] == (size, size) and images == sorted(images) and len(images) > 3


def test_unknown_names_and_addresses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="known are mnist, fashion-mnist"):
        fetch_dataset("cifar", tmp_path)
    with pytest.raises(ConfigError, match="http"):
        fetch_dataset("mnist", tmp_path, base_url="file:///etc")
