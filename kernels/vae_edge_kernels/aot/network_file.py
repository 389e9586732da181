"""Network files: a fused network with its machine code in one safetensors file, which the native library opens.

The file's tensors:

    weights, numbers, whitenings   the weight buffer, params and whitening of `vae_edge_kernels.layout`
    cubin.NN                       machine code for sm_NN, one CTA an image
    spread.NN                      machine code for sm_NN, several CTAs an image
    about                          the description: lines of key=value in UTF-8

and the keys of the description:

    side, channels, classes, has_angle   of images and answers; where images are not square, `side` is the height
    width                                only where images are not square
    threshold_bits                       the threshold of the score, as the bits of a float32
    area_bytes                           of a slot's activations
    floats                               of a slot's workspace
    weights_bytes, numbers_bytes, whitenings_bytes
    class.0, class.1, ...                names
    kernel.NN, spread.NN                 entry, warps, bytes of shared memory and CTAs an image of cubin.NN or spread.NN

Every key stands once, and no other may stand there. The metadata are `format` and `sha256`: the digest of the whole
file as it is with 64 zeros in the digest's place. (In format 2, which is still read, it was the digest of everything
behind the header.) The limits are those of `vae_edge.h`. The names in the file are those of its first version.

`pack_machine_code` gives the machine code without the weights, for an engine that has them itself: a safetensors file
of cubin.NN and `about`, whose description has the keys of sizes and machine code, and two of its own: `int8`, whether
the weights are int8, and `layout_sha256`, the digest of the layout's JSON.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vae_edge_kernels import KernelError, aot, layout
from vae_edge_kernels.layout import NetworkLayout, from_json, padded, to_json

FORMAT = "vae-edge-network-3"
FORMAT_OF_CODE = "vae-edge-code-1"
NO_DIGEST = "0" * 64
MAX_CLASSES = 4096  # this and what follows: as vae_edge.h has it
MAX_CLASS_NAME_BYTES = 1024
MAX_SIDE = 1024  # pixels
MAX_CHANNELS = 4
MAX_SCRATCH_BYTES = 16 << 20  # of a slot's activations, and of its workspace
MAX_FILE_BYTES = 256 << 20
ORIN = (87,)
CTA_COUNTS = tuple(1 << n for n in range(layout.MAX_CTAS_PER_IMAGE.bit_length()))  # powers of two


def write_network(
    path: str | os.PathLike[str],
    net: NetworkLayout,
    *,
    weights: Any,
    params: Any,
    whitening: Any,
    classes: Sequence[str],
    threshold: float,
    architectures: Sequence[int] = ORIN,
    ctas_per_image: int = 1,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Compile a network for some GPUs and write its file.

    Args:
        path: of the file.
        net: the network's layout.
        weights, params, whitening: NumPy arrays, as the layout says.
        classes: names, as many as the network has.
        threshold: a score up to it is accepted.
        architectures: 87 is Jetson Orin; see `vae_edge_kernels.aot.ARCHITECTURES`.
        ctas_per_image: above 1 (a power of two, at most 32), the file also has machine code with so many CTAs an image.
            It is used while batch · ctas_per_image is at most the number of multiprocessors.
        progress: called with a line when an architecture is done.

    Raises:
        KernelError: names do not fit the network, a number is not finite or beyond what such a file may have, or the
            network does not compile for an architecture.
    """
    if ctas_per_image not in CTA_COUNTS:
        raise KernelError(f"ctas_per_image must be a power of two up to {CTA_COUNTS[-1]}; got {ctas_per_image}")
    tensors = {"weights": weights, "numbers": params, "whitenings": whitening}
    _check_buffers(net, weights, params, whitening)
    _check_names(net, classes)
    about = _description(net, tensors, classes, threshold)
    _compile(net, tensors, about, architectures, ctas_per_image, progress)
    Path(path).write_bytes(_pack(tensors, about, FORMAT))


def pack_machine_code(
    network: str, architectures: Sequence[int] = ORIN, progress: Callable[[str], None] | None = None
) -> bytes:
    """Compile a network for some GPUs, one CTA an image, and pack the machine code without any weights.

    Args:
        network: JSON of the network's layout, as `vae_edge_kernels.layout.to_json` writes it.
        architectures: 87 is Jetson Orin; see `vae_edge_kernels.aot.ARCHITECTURES`.
        progress: called with a line when an architecture is done.

    Raises:
        KernelError: the network is beyond what a network file may have, or does not compile for an architecture.
    """
    net = from_json(network)
    score = net.score
    about: dict[str, int | float | str] = {
        **_sizes(net),
        "weights_bytes": net.weights_size * (1 if net.int8 else 2),
        "numbers_bytes": net.params_size * 4,
        "whitenings_bytes": score.clusters * score.components * padded(score.components) * 2,
        "int8": int(net.int8),
        "layout_sha256": hashlib.sha256(network.encode()).hexdigest(),
    }
    tensors: dict[str, Any] = {}
    _compile(net, tensors, about, architectures, 1, progress)
    return _pack(tensors, about, FORMAT_OF_CODE)


def _compile(
    net: NetworkLayout,
    tensors: dict[str, Any],
    about: dict[str, int | float | str],
    architectures: Sequence[int],
    ctas_per_image: int,
    progress: Callable[[str], None] | None,
) -> None:
    """Add the machine code to the tensors, and the lines about it to the description."""
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="vae-edge-network-") as folder:
        pattern = "network*" if ctas_per_image > 1 else "network"
        manifest = aot.compile_all(
            folder, architectures, network=to_json(net), only=pattern, ctas_per_image=ctas_per_image, progress=progress
        )
        for kernel in manifest["kernels"]:
            single = kernel["name"] == "network"
            line, tensor = ("kernel", "cubin") if single else ("spread", "spread")
            for cubin in kernel["cubins"]:
                number = cubin["architecture"]
                figures = f"{cubin['warps']} {cubin['shared_bytes']} {1 if single else ctas_per_image}"
                about[f"{line}.{number}"] = f"{kernel['entry']} {figures}"
                code = np.frombuffer((Path(folder) / cubin["file"]).read_bytes(), np.uint8)
                tensors[f"{tensor}.{number}"] = code


def _pack(tensors: dict[str, Any], about: dict[str, int | float | str], file_format: str) -> bytes:
    """The file's bytes, with the description among the tensors."""
    import numpy as np

    lines = "".join(f"{key}={value}\n" for key, value in about.items())
    content = _with_digest({**tensors, "about": np.frombuffer(lines.encode(), np.uint8)}, file_format)
    if len(content) > MAX_FILE_BYTES:
        raise KernelError(f"a network file may have {MAX_FILE_BYTES} bytes; this one would have {len(content)}")
    return content


def _check_buffers(net: NetworkLayout, weights: Any, params: Any, whitening: Any) -> None:
    """Refuse buffers that are not as the layout says, or numbers that are not finite."""
    import numpy as np

    score = net.score
    for name, array, shape, dtype in (
        ("weights", weights, (net.weights_size,), np.int8 if net.int8 else np.float16),
        ("params", params, (net.params_size,), np.float32),
        ("whitening", whitening, (score.clusters, score.components, padded(score.components)), np.float16),
    ):
        if array is None or array.shape != shape or array.dtype != dtype:
            came = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
            raise KernelError(f"{name} must be {np.dtype(dtype)} {list(shape)}, as the layout says; got {came}")

        # A float32 may be infinite: a limit that does not bind. A float16 that is has overflowed.
        bad = np.isnan(array) if dtype == np.float32 else ~np.isfinite(array)
        if bad.any():
            raise KernelError(f"{name} must be finite numbers; {int(bad.sum())} of {bad.size} are not")


def _check_names(net: NetworkLayout, classes: Sequence[str]) -> None:
    """Refuse names that are not as many as the classes, or do not make one line of UTF-8 each."""
    if len(classes) != net.classes:
        raise KernelError(f"the network has {net.classes} classes; got {len(classes)} names: {ascii(classes)[:200]}")
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
    net: NetworkLayout, buffers: dict[str, Any], classes: Sequence[str], threshold: float
) -> dict[str, int | float | str]:
    """The description by key, all but the lines about machine code."""
    import numpy as np

    with np.errstate(over="ignore"):
        rounded = np.float32(threshold)
    if not np.isfinite(rounded):
        raise KernelError(f"the threshold must be a finite float32; got {threshold}")
    return {
        **_sizes(net),
        "has_angle": int(net.bins > 0),
        "threshold_bits": int(rounded.view(np.uint32)),
        **{f"{name}_bytes": buffer.nbytes for name, buffer in buffers.items()},
        **{f"class.{number}": name for number, name in enumerate(classes)},
    }


def _sizes(net: NetworkLayout) -> dict[str, int | float | str]:
    """The part of the description that the layout alone tells, within its limits."""
    limited = {
        "side": (net.height, MAX_SIDE),
        **({"width": (net.width, MAX_SIDE)} if net.width != net.height else {}),
        "channels": (net.channels, MAX_CHANNELS),
        "classes": (net.classes, MAX_CLASSES),
        "area_bytes": (net.activation_size * (1 if net.int8 else 2), MAX_SCRATCH_BYTES),
        "floats": (net.workspace_size, MAX_SCRATCH_BYTES // 4),
    }
    for name, (value, limit) in limited.items():
        if value > limit:
            raise KernelError(f"a network file may have {name} up to {limit}; the network's is {value}")
    return {name: value for name, (value, _) in limited.items()}


def _with_digest(tensors: dict[str, Any], file_format: str) -> bytes:
    """The file's bytes, their digest in the metadata."""
    from safetensors.numpy import save

    plain = save(tensors, {"format": file_format, "sha256": NO_DIGEST})
    before, zeros, after = plain.partition(NO_DIGEST.encode())  # the first such zeros: the header comes before the rest
    assert zeros
    return before + hashlib.sha256(plain).hexdigest().encode() + after
