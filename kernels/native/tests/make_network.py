"""Writes a network file for the tests in C: a small network, parameters that are all zero, real machine code.

python make_network.py FILE ARCHITECTURE CTAS_PER_IMAGE
"""

from __future__ import annotations

import sys

import numpy as np
from vae_edge_kernels.aot.network_file import write_network
from vae_edge_kernels.layout import padded
from vae_edge_kernels.layout_builder import make_layout


def main(path: str, architecture: int, ctas_per_image: int) -> None:
    """Write the file."""
    layout = make_layout(
        size=(28 if ctas_per_image == 1 else 40, 28),
        channels=1,
        classes=3,
        bins=0,
        latent=4,
        hidden=4,
        fill=0.0,
        circular_mask=False,
        orientation=(),
        encoder=[(16, 1), (16, 2), (16, 1), (16, 2), (16, 1), (16, 2)],
        feature_layer=2,
        components=4,
        clusters=3,
        decoder=None,
        reduction=1,
        int8=False,
    )
    write_network(
        path,
        layout,
        weights=np.zeros(layout.weights_size, np.float16),
        params=np.zeros(layout.params_size, np.float32),
        whitening=np.zeros((3, 4, padded(4)), np.float16),
        classes=["one", "t=wo", "drei äöü"],
        threshold=0.5,
        architectures=(architecture,),
        ctas_per_image=ctas_per_image,
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
