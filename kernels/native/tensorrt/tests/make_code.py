"""Writes a container of machine code for the plugin's test in C++, and the layout that it is for.

python make_code.py CODE LAYOUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from vae_edge_kernels.aot.network_file import pack_machine_code
from vae_edge_kernels.layout import to_json
from vae_edge_kernels.layout_builder import make_layout


def main(code: str, layout: str) -> None:
    """Write both files."""
    net = make_layout(
        size=(28, 28),
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
    Path(layout).write_text(to_json(net), encoding="utf-8")
    Path(code).write_bytes(pack_machine_code(to_json(net), (87,)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
