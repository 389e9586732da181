"""Network files: a fused network with its machine code in one safetensors file, which the native library opens.

The file's tensors are `weights`, `numbers` and `whitenings` (see `vae_edge_kernels.plan`), `cubin.NN` (machine code for
sm_NN) and `about`, lines of key=value in UTF-8:

    side, channels, classes, has_angle   of images and answers
    threshold_bits                       the threshold of the score, as the bits of a float32
    area_bytes, floats                   scratch of an image
    weights_bytes, numbers_bytes, whitenings_bytes
    class.0, class.1, ...                names
    kernel.NN                            entry, warps, bytes of shared memory and programs an image (1) of cubin.NN
    spread.NN                            the same of tensor spread.NN, by which several programs work on one image

Every key stands once, and no other may stand there. The metadata are `format` and `sha256`: the digest of the whole
file as it is with 64 zeros in the digest's place. (Of format 2, which is still read, it was the digest of everything
behind the header.) What a file may have at most is in `vae_edge.h`.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vae_edge_kernels import aot
from vae_edge_kernels.errors import KernelError
from vae_edge_kernels.plan import MOST_PROGRAMS, Plan, padded, to_text

FORMAT = "vae-edge-network-3"
NO_DIGEST = "0" * 64
MAX_CLASSES = 4096  # this and what follows: as vae_edge.h has it
MAX_CLASS_NAME_BYTES = 1024
MAX_SIDE = 1024  # pixels
MAX_CHANNELS = 4
MAX_SCRATCH_BYTES = 16 << 20  # of an image's feature maps, and of its other numbers
MAX_FILE_BYTES = 256 << 20
ORIN = (87,)
POWERS = tuple(1 << n for n in range(MOST_PROGRAMS.bit_length()))


def write_network(
    path: str | os.PathLike[str],
    given: Plan,
    buffers: dict[str, Any],
    classes: Sequence[str],
    threshold: float,
    architectures: Sequence[int] = ORIN,
    programs: int = 1,
) -> None:
    """Compile a network for some GPUs and write its file.

    Args:
        given: what the network is.
        buffers: NumPy arrays `weights`, `numbers` and `whitenings`, as the plan says.
        classes: names, as many as the network has.
        threshold: a score up to it is accepted.
        architectures: 87 is Jetson Orin; see `vae_edge_kernels.aot.ARCHITECTURES`.
        programs: above 1, the file also has machine code by which so many programs (a power of two, at most 32) work on
            one image, for batches that leave every one of them a multiprocessor.

    Raises:
        KernelError: if names do not fit the network, a number is not finite or beyond what such a file may have, or the
            network does not compile for an architecture.
    """
    import numpy as np

    if programs not in POWERS:
        raise KernelError(f"programs must be a power of two up to {POWERS[-1]}; got {programs}")
    tensors = {name: buffers.get(name) for name in ("weights", "numbers", "whitenings")}
    _check_buffers(given, tensors)
    _check_names(given, classes)
    about = _description(given, tensors, classes, threshold)
    with tempfile.TemporaryDirectory(prefix="vae-edge-network-") as folder:
        wanted = "network*" if programs > 1 else "network"
        manifest = aot.compile_all(folder, architectures, network=to_text(given), only=wanted, ctas_per_image=programs)
        for kernel in manifest["kernels"]:
            alone = kernel["name"] == "network"
            for cubin in kernel["cubins"]:
                number = cubin["architecture"]
                figures = f"{cubin['warps']} {cubin['shared_bytes']} {1 if alone else programs}"
                about[f"{'kernel' if alone else 'spread'}.{number}"] = f"{kernel['entry']} {figures}"
                code = np.frombuffer((Path(folder) / cubin["file"]).read_bytes(), np.uint8)
                tensors[f"{'cubin' if alone else 'spread'}.{number}"] = code
    tensors["about"] = np.frombuffer("".join(f"{key}={value}\n" for key, value in about.items()).encode(), np.uint8)
    content = _with_digest(tensors)
    if len(content) > MAX_FILE_BYTES:
        raise KernelError(f"a network file may have {MAX_FILE_BYTES} bytes; this one would have {len(content)}")
    Path(path).write_bytes(content)


def _check_buffers(given: Plan, buffers: dict[str, Any]) -> None:
    """Refuse buffers that are not as the plan says, or numbers that are not finite."""
    import numpy as np

    score = given.score
    shapes = {
        "weights": ((given.weights_size,), np.int8 if given.int8 else np.float16),
        "numbers": ((given.numbers_size,), np.float32),
        "whitenings": ((score.clusters, score.components, padded(score.components)), np.float16),
    }
    for name, (shape, dtype) in shapes.items():
        found = buffers[name]
        if found is None or found.shape != shape or found.dtype != dtype:
            came = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise KernelError(f"{name} must be {np.dtype(dtype)} {list(shape)}, as the plan says; got {came}")
        # A float32 may be infinite: a limit that does not bind. A float16 that is has overflowed.
        odd = np.isnan(found) if dtype == np.float32 else ~np.isfinite(found)
        if odd.any():
            raise KernelError(f"{name} must be finite numbers; {int(odd.sum())} of {odd.size} are not")


def _check_names(given: Plan, classes: Sequence[str]) -> None:
    """Refuse names that are not as many as the classes, or do not make one line of UTF-8 each."""
    if len(classes) != given.classes:
        raise KernelError(f"the network has {given.classes} classes; got {len(classes)} names: {ascii(classes)[:200]}")
    for name in classes:
        try:
            size = len(name.encode())
        except UnicodeEncodeError:
            raise KernelError(f"a class name must be valid Unicode; got {name!a}") from None
        if "\n" in name or "\0" in name:
            raise KernelError(f"a class name must be one line; got {name!a}")
        if not 1 <= size <= MAX_CLASS_NAME_BYTES:
            raise KernelError(
                f"a class name must have 1 to {MAX_CLASS_NAME_BYTES} bytes of UTF-8; {ascii(name)[:80]} has {size}"
            )


def _description(
    given: Plan, buffers: dict[str, Any], classes: Sequence[str], threshold: float
) -> dict[str, int | float | str]:
    """The description's values by their keys, all but those of the machine code."""
    import numpy as np

    with np.errstate(over="ignore"):
        bound = np.float32(threshold)
    if not np.isfinite(bound):
        raise KernelError(f"the threshold must be a finite float32; got {threshold}")
    limited = {
        "side": (given.side, MAX_SIDE),
        "channels": (given.channels, MAX_CHANNELS),
        "classes": (given.classes, MAX_CLASSES),
        "area_bytes": (2 * given.area * (1 if given.int8 else 2), MAX_SCRATCH_BYTES),
        "floats": (given.floats, MAX_SCRATCH_BYTES // 4),
    }
    for name, (value, most) in limited.items():
        if value > most:
            raise KernelError(f"a network file may have {name} up to {most}; the network's is {value}")
    return {
        **{name: value for name, (value, _) in limited.items()},
        "has_angle": int(given.bins > 0),
        "threshold_bits": int(bound.view(np.uint32)),
        **{f"{name}_bytes": buffer.nbytes for name, buffer in buffers.items()},
        **{f"class.{number}": name for number, name in enumerate(classes)},
    }


def _with_digest(tensors: dict[str, Any]) -> bytes:
    """The file's bytes, their digest in the metadata."""
    from safetensors.numpy import save

    plain = save(tensors, {"format": FORMAT, "sha256": NO_DIGEST})
    before, zeros, after = plain.partition(NO_DIGEST.encode())  # the first such zeros: the header comes before the rest
    assert zeros
    return before + hashlib.sha256(plain).hexdigest().encode() + after
