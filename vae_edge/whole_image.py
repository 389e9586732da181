"""Whether an image file holds all the pixels that its header promises.

Pillow refuses a file that ends too early, but not one whose compressed data ends early and in good order: zlib says in
a PNG that it is done, or a JPEG's end marker comes before its last row. What is missing comes out black or grey.
"""

from __future__ import annotations

import re
import zlib
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import Image

from vae_edge.limits import MAX_IMAGE_BYTES

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Values of a pixel by a PNG's colour type."""
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of Adam7: first column and row, steps to the next ones (PNG specification, section 8.2)."""
_CHUNK = 1 << 16
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""What ends a JPEG's entropy-coded data: neither a stuffed byte nor a restart marker."""
_CORNER = 4


def check_whole(image: Image.Image, file: BinaryIO) -> None:
    """Refuse a PNG, or a baseline JPEG, whose pixels are not all there (OSError). `image` was loaded from `file`."""
    if image.format == "PNG":
        have, wanted = _png_bytes(file)
        if have < wanted:
            raise OSError(f"it ends early: {have} of the {wanted} bytes of its pixels are there")
    elif image.format == "JPEG" and _is_flat_at_its_end(image) and _ends_early(file):
        raise OSError("its compressed data ends before its last row")


def _png_bytes(file: BinaryIO) -> tuple[int, int]:
    """How many bytes of pixels a PNG holds, at most as many as it promises, and how many it promises."""
    file.seek(8)
    wanted = have = 0
    inflate = zlib.decompressobj()
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind == b"IHDR":
            wanted = _promised(file.read(length))
        elif kind == b"IDAT":
            have += _inflated(inflate, file, length)
            if have >= wanted or inflate.eof:
                break
        elif kind == b"IEND":
            break
        else:
            file.seek(length, 1)
        file.seek(4, 1)  # its checksum, which Pillow compares
    return min(have, wanted), wanted


def _inflated(inflate: zlib._Decompress, file: BinaryIO, length: int) -> int:
    """How many bytes come out of a chunk; nothing of them is kept."""
    count = 0
    while length > 0 and not inflate.eof:
        part = file.read(min(length, _CHUNK))
        if not part:
            break
        length -= len(part)
        while part and not inflate.eof:
            count += len(inflate.decompress(part, _CHUNK))
            part = inflate.unconsumed_tail
    file.seek(length, 1)
    return count


def _promised(header: bytes) -> int:
    """Bytes of all rows, each with its filter, by the chunk IHDR."""
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    bits = header[8] * _CHANNELS.get(header[9], 1)
    passes = _PASSES if header[12] else ((0, 0, 1, 1),)
    total = 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total


def _is_flat_at_its_end(image: Image.Image) -> bool:
    """Whether the last corner has one colour, as all that a decoder makes of missing data."""
    corner = np.asarray(
        image.crop((max(0, image.width - _CORNER), max(0, image.height - _CORNER), image.width, image.height))
    )
    return bool((corner == corner[-1, -1]).all())


def _ends_early(file: BinaryIO) -> bool:
    """Whether a baseline JPEG of one scan still lacks data when its end marker is taken away and zeros stand for it.

    A decoder that has all blocks does not look further; one that lacks some wants more than a few zeros.
    """
    file.seek(0)
    content = file.read(MAX_IMAGE_BYTES)
    at, baseline = 2, False
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        baseline |= marker in (0xC0, 0xC1)
        at += 2 + length
        if marker == 0xDA:
            break
    else:
        return False
    end = _MARKER.search(content, at)
    if not baseline or end is None or content[end.start() + 1] != 0xD9:
        return False  # progressive, or in several scans
    probe = Image.open(BytesIO(content[: end.start()] + bytes(16)), formats=("JPEG",))
    probe.draft(probe.mode, (1, 1))  # an eighth of the size: all of the data is read, and little memory taken
    try:
        probe.load()
    except OSError:
        return True
    return False
