"""A wheel of the running installation, also of an editable one, by the standard library alone.

It holds the two packages as they are on the disk: pure Python, so that Python imports from the file itself
(PYTHONPATH) and pip installs it. The same sources give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
import zipfile
from collections.abc import Iterator

from vae_edge import __version__
from vae_edge.environment import package_files
from vae_edge.errors import EngineError

PACKAGES = ("vae_edge", "vae_edge_kernels")
SUFFIXES = (".py", ".json", ".html", ".typed")
DISTRIBUTION = "vae-edge"
_WHEEL = "Wheel-Version: 1.0\nGenerator: vae-edge\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_METADATA = "Metadata-Version: 2.1\nName: vae-edge\nVersion: {}\nRequires-Python: >=3.10\nRequires-Dist: numpy>=1.26\n"
_ENTRY_POINTS = "[console_scripts]\nvae-edge = vae_edge.cli:main\n"
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold


def wheel_name() -> str:
    """The wheel's file name."""
    return f"vae_edge-{__version__}-py3-none-any.whl"


def write_wheel(path: str | os.PathLike[str]) -> None:
    """Write the wheel.

    Raises:
        EngineError: a package is not where it can be read from.
        OSError: the disk is full, or `path` cannot be written.
    """
    records = f"vae_edge-{__version__}.dist-info"
    content = dict(_sources())
    content[f"{records}/METADATA"] = _metadata().encode()
    content[f"{records}/WHEEL"] = _WHEEL.encode()
    content[f"{records}/entry_points.txt"] = _ENTRY_POINTS.encode()
    lines = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in content.items()]
    lines.append(f"{records}/RECORD,,")
    content[f"{records}/RECORD"] = ("\n".join(lines) + "\n").encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            member = zipfile.ZipInfo(name, _DATE)
            member.external_attr = 0o644 << 16
            archive.writestr(member, data, zipfile.ZIP_DEFLATED)


def _sources() -> Iterator[tuple[str, bytes]]:
    for package in PACKAGES:
        found = [(f"{package}/{name}", content) for name, content in package_files(package, SUFFIXES)]
        if not found:
            raise EngineError(f"The package {package} has no Python files that can be read: install vae-edge again.")
        yield from found


def _metadata() -> str:
    """That of the installation; where there is none, as in a checkout that is only on the path, a short one."""
    try:
        found = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return _METADATA.format(__version__)
    text = found.read_text("METADATA")
    return text if text is not None and found.version == __version__ else _METADATA.format(__version__)


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
