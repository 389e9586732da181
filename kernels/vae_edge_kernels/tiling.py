"""How the kernels of a network are compiled: the tile of each layer, and the lengths of vectors.

This module imports neither Triton nor PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from vae_edge_kernels.layout import MIN_TILE_PIXELS, ConvLayout, NetworkLayout

MAX_CLUSTER_BLOCK = 64  # clusters of the score that are compared at once


@dataclass(frozen=True)
class PaddedSizes:
    """Lengths of the kernels' vectors: those of a network, rounded up to powers of two, as `tl.arange` wants them."""

    classes: int
    orientation: int  # class logits and bins
    latent: int
    hidden: int
    features: int
    components: int
    clusters: int


@lru_cache(maxsize=256)
def with_tile_config(
    layout: NetworkLayout,
    warps: int,
    warp_tiles: int,
    ahead_registers: int = 0,
    noinline: int = 0,
    ctas_per_image: int = 1,
) -> NetworkLayout:
    """The layout as it is compiled: each layer gets its tile.

    Args:
        layout: as `make_layout` made it.
        warps: of a program.
        warp_tiles: products of 16 output channels by 8 output pixels whose sums a warp holds, at most.
        ahead_registers: a thread's registers for operands that are loaded ahead, at most.
        noinline, ctas_per_image: see `NetworkLayout`.
    """
    layers = []
    for layer in layout.layers:
        tiled = min(_tiles(layer, warps, warp_tiles), key=lambda tiled: _tile_cost(tiled, ctas_per_image))
        of_chunk = 8 * tiled.dots * (tiled.filters.dot_m // 16) + 4 * sum(tiled.groups)
        layers.append(replace(tiled, chunks_ahead=ahead_registers // of_chunk))
    return replace(layout, layers=tuple(layers), warps=warps, noinline=noinline, ctas_per_image=ctas_per_image)


def _tiles(layer: ConvLayout, warps: int, warp_tiles: int) -> Iterator[ConvLayout]:
    """The layer with each tile that it could have."""
    groups, j = -(-layer.out_pixels // MIN_TILE_PIXELS), layer.filters.dot_m // 16
    for warps_n in (1 << bit for bit in range(warps.bit_length())):
        warps_m = warps // warps_n
        for dots in range(1, min(-(-layer.filters.dots // warps_m), max(1, warp_tiles // j)) + 1):
            most = min(-(-groups // warps_n), warp_tiles // (j * dots))
            for of_warp in range(1, max(1, most) + 1):
                parts = tuple(1 << bit for bit in reversed(range(of_warp.bit_length())) if of_warp >> bit & 1)
                yield replace(layer, warps_m=warps_m, warps_n=warps_n, dots=dots, groups=parts)


def _tile_cost(layer: ConvLayout, ctas_per_image: int) -> tuple[float, int, int]:
    """What a tile of a layer takes: modelled cycles of a multiprocessor for two matrix instructions' summed index, by
    what takes the longest; then products, and tiles.

    A matrix instruction takes 8 cycles of one of four tensor cores, 16 bytes a thread 4 of the first-level cache.
    """
    rows, columns, warps = layer.dots * layer.filters.dot_m // 16, sum(layer.groups), layer.warps_m * layer.warps_n
    loads, products = 2 * rows + columns, 2 * rows * columns
    tiles = layer.tiles
    cycles = warps * max(4.0 * loads, 2.0 * products, (loads + products) / 4)
    return -(-tiles // ctas_per_image) * cycles, tiles * warps * products, tiles


@lru_cache(maxsize=256)
def with_warps(layout: NetworkLayout, warps: int) -> NetworkLayout:
    """The layout for kernels of so many warps a program."""
    return replace(layout, warps=warps)


@lru_cache(maxsize=256)
def padded_sizes(layout: NetworkLayout) -> PaddedSizes:
    """The lengths of the vectors of a network's kernels."""

    def length(size: int) -> int:
        return max(16, next_power_of_two(size))

    return PaddedSizes(
        classes=length(layout.classes),
        orientation=length(layout.classes + layout.bins),
        latent=length(layout.latent),
        hidden=length(layout.hidden),
        features=length(max(layout.feature_channels, layout.orientation_feature_channels)),
        components=length(layout.score.components),
        clusters=length(min(layout.score.clusters, MAX_CLUSTER_BLOCK)),
    )


def next_power_of_two(size: int) -> int:
    """The smallest power of two that is at least the size."""
    return 1 << max(0, size - 1).bit_length()
