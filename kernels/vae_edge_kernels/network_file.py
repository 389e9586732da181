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

Its metadata are `format` and `sha256`, the digest of everything behind the header.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vae_edge.errors import KernelError
from vae_edge.files import write_bytes
from vae_edge_kernels import aot
from vae_edge_kernels.plan import MOST_PROGRAMS, Plan, padded, to_text

FORMAT = "vae-edge-network-2"
ORIN = (87,)
POWERS = tuple(1 << n for n in range(MOST_PROGRAMS.bit_length()))
PREFIX = 8  # bytes that hold the header's length


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
        KernelError: if names do not fit the network, or it does not compile for an architecture.
    """
    import numpy as np
    from safetensors.numpy import save

    if len(classes) != given.classes:
        raise KernelError(f"the network has {given.classes} classes; got {len(classes)} names: {', '.join(classes)}")
    score = given.score
    shapes = {
        "weights": ((given.weights_size,), np.int8 if given.int8 else np.float16),
        "numbers": ((given.numbers_size,), np.float32),
        "whitenings": ((score.clusters, score.components, padded(score.components)), np.float16),
    }
    for name, (shape, dtype) in shapes.items():
        found = buffers.get(name)
        if found is None or found.shape != shape or found.dtype != dtype:
            came = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise KernelError(f"{name} must be {np.dtype(dtype)} {list(shape)}, as the plan says; got {came}")
    if programs not in POWERS:
        raise KernelError(f"programs must be a power of two up to {POWERS[-1]}; got {programs}")
    if not np.isfinite(np.float32(threshold)):
        raise KernelError(f"the threshold must be a finite number; got {threshold}")
    odd = [name for name in classes if "\n" in name or "\0" in name]
    if odd:
        raise KernelError(f"a class name must be one line; got {odd[0]!r}")
    element = 1 if given.int8 else 2
    about = {
        "side": given.side,
        "channels": given.channels,
        "classes": given.classes,
        "has_angle": int(given.bins > 0),
        "threshold_bits": struct.unpack("<I", struct.pack("<f", threshold))[0],
        "area_bytes": 2 * given.area * element,
        "floats": given.floats,
        **{f"{name}_bytes": buffer.nbytes for name, buffer in buffers.items()},
        **{f"class.{number}": name for number, name in enumerate(classes)},
    }
    tensors = dict(buffers)
    with tempfile.TemporaryDirectory(prefix="vae-edge-network-") as folder:
        wanted = "network*" if programs > 1 else "network"
        manifest = aot.compile_all(folder, architectures, network=to_text(given), only=wanted, programs=programs)
        for kernel in manifest["kernels"]:
            alone = kernel["name"] == "network"
            for cubin in kernel["cubins"]:
                number = cubin["architecture"]
                figures = f"{cubin['warps']} {cubin['shared_bytes']} {1 if alone else programs}"
                about[f"{'kernel' if alone else 'spread'}.{number}"] = f"{kernel['entry']} {figures}"
                code = np.frombuffer((Path(folder) / cubin["file"]).read_bytes(), np.uint8)
                tensors[f"{'cubin' if alone else 'spread'}.{number}"] = code
    tensors["about"] = np.frombuffer("".join(f"{key}={value}\n" for key, value in about.items()).encode(), np.uint8)
    plain = save(tensors, {"format": FORMAT, "sha256": "0" * 64})
    (header,) = struct.unpack("<Q", plain[:PREFIX])
    digest = hashlib.sha256(plain[PREFIX + header :]).hexdigest()
    content = save(tensors, {"format": FORMAT, "sha256": digest})
    assert len(content) == len(plain)  # digests are of one length, so the data begin where they did
    write_bytes(Path(path), content)
