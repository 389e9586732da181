"""The text files of a kit: the script that starts everything on the device, and the page to read."""

from __future__ import annotations

import re

from vae_edge.kit.description import SUMS_FILE, KitDescription

_SCRIPT = r"""#!/bin/sh
# Builds, verifies and measures @BUNDLE@ on @DEVICE@.
# Usage: sh build.sh [--out FOLDER] [--device N] [--seconds S]     (PYTHON=... chooses another Python)
set -u
kit=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd) || exit 2
wheel="$kit/@WHEEL@"
python=${PYTHON:-python3}
case $python in
*/*) python=$(CDPATH= cd -- "$(dirname -- "$python")" && pwd)/$(basename -- "$python") ;;
esac
here=$(pwd)
cd -- "$kit" || exit 2 # so that nothing is imported from the folder that this is run in

stop() {
    printf '%s\n' "build.sh: $1" >&2
    exit 2
}

command -v "$python" >/dev/null 2>&1 || stop "There is no $python. Install it: sudo apt-get install python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    stop "$python is older than Python 3.10, which JetPack 6 and later bring. Name another: PYTHON=... sh build.sh"
case $kit in
*:*) stop "The folder $kit has a colon in its name, which Python's path cannot hold: rename it." ;;
esac

"$python" - "$kit" <<'END' || exit 2
import hashlib, os, sys
folder = sys.argv[1]
try:
    with open(os.path.join(folder, "@SUMS@"), encoding="ascii") as file:
        lines = file.read().splitlines()
except (OSError, ValueError):
    lines = []
if not lines:
    sys.exit("build.sh: @SUMS@ is missing or damaged: copy the kit again.")
for line in lines:
    digest, name = line[:64], line[66:]
    found = hashlib.sha256()
    try:
        with open(os.path.join(folder, name), "rb") as file:
            for part in iter(lambda: file.read(1 << 20), b""):
                found.update(part)
    except OSError as error:
        sys.exit("build.sh: %s cannot be read (%s): copy the kit again." % (name, error.strerror))
    if found.hexdigest() != digest:
        sys.exit("build.sh: %s was changed or is damaged (SHA-256): copy the kit again." % name)
print("%d files are as they were written" % len(lines))
END

"$python" -c 'import numpy' 2>/dev/null ||
    stop "$python has no NumPy. Install it: sudo apt-get install python3-numpy"
"$python" -c 'import tensorrt' 2>/dev/null || "$python" -c 'import tensorrt_bindings' 2>/dev/null || {
    "$python" -c 'import tensorrt' >&2
    printf '%s\n' "A venv sees it if it was made with: python3 -m venv --system-site-packages" >&2
    stop "$python cannot import TensorRT (see above). Install it: @INSTALL@"
}

export PYTHONPATH="$wheel${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1
exec "$python" -m vae_edge.kit.device "$kit" "$here" "$@"
"""

_README = """{bundle} for {product} ({target}), written {created} by vae-edge {vae_edge}.

On the device, in this folder:   sh build.sh
It checks every file here, builds {precisions} with the device's own TensorRT, verifies the answers with the probe
images in the bundle, measures latency{accuracy}, and writes result-{device}-DATE.tar.gz here.
It needs Python 3.10 or later with NumPy and TensorRT ({install}), and no network.
If this folder cannot be written to:   sh build.sh --out FOLDER

Back home:   vae-edge kit result-{device}-DATE.tar.gz --into BUNDLE
adds the engines and what was measured to the bundle. bundle/ also runs here: vae_edge.load("bundle", "tensorrt").
Expected accuracy: {expected}.
"""


def install_command(description: KitDescription) -> str:
    """The command that brings TensorRT's Python module to the device."""
    return "sudo apt-get install python3-libnvinfer" if description.jetson else "pip install tensorrt"


def build_script(description: KitDescription, wheel: str) -> str:
    """`build.sh`: POSIX sh; it checks the sums before anything of the kit is run."""
    words = {
        "@BUNDLE@": _one_line(description.bundle),
        "@DEVICE@": _one_line(f"{description.product} ({description.target})"),
        "@WHEEL@": wheel,
        "@SUMS@": SUMS_FILE,
        "@INSTALL@": install_command(description),
    }
    return re.sub("|".join(words), lambda found: words[found[0]], _SCRIPT)


def readme(description: KitDescription) -> str:
    """The page to read: what this is and which command to run."""
    precisions = " and ".join(config.precision for config in description.configs)
    figures = [
        f"{name} {100 * found['accuracy']:.2f}%"
        for name, found in (description.measured or description.expected).items()
        if isinstance(found, dict) and isinstance(found.get("accuracy"), (int, float))
    ]
    where = "on the images in data.npz" if description.measured else "as measured at home"
    return _README.format(
        bundle=_one_line(description.bundle),
        product=description.product,
        target=description.target,
        created=description.created[:10],
        vae_edge=description.vae_edge,
        precisions=f"{precisions} engines" if len(description.configs) > 1 else f"an {precisions} engine",
        accuracy="" if description.data is None else " and accuracy",
        device=description.device,
        install=install_command(description),
        expected=f"{', '.join(figures)} {where}" if figures else "not recorded",
    )


def _one_line(text: str) -> str:
    """Text for a comment of the script: no line may begin in it."""
    return re.sub(r"[^\x20-\x7e]", "?", text)
