"""The whole network in one launch: from the image's bytes to probabilities, angle, score and angle uncertainty.

    orientation encoder → angle → derotation → encoder → classifier and partial score → decoder → score

follow one another in one kernel (a persistent megakernel: one program, or several, keep an image from start to end). It
is specialized by the network's layout; the steps are in `network_steps`, the convolutions in `network_convs`. Feature
maps lie in the slot's activations, small enough to stay in the L2 cache, and between layers the image's programs wait
for one another (`image_barrier`).
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from vae_edge_kernels.config import KernelSpec, current_architecture, get_config
from vae_edge_kernels.layout import NetworkLayout
from vae_edge_kernels.network_convs import first_conv, hidden_conv
from vae_edge_kernels.network_steps import (
    clear_borders,
    decoder_error,
    decoder_fc,
    first_goal,
    full_score,
    head_content,
    head_orientation,
    identity_orientation,
    image_barrier,
    load_image,
    reduce_upright,
    rotate_upright,
    target_contrast,
)
from vae_edge_kernels.tiling import padded_sizes, with_tile_config

OPERATOR = "network"


def _noinline(function: Any) -> Any:
    return triton.jit(function.fn, noinline=True)


# The same steps, each a function in the machine code. See `network`. ptxas (of CUDA 13.4) lays functions out in the
# order of their names: a name that sorts elsewhere changes the machine code by a few instructions.
clear_borders_noinline = _noinline(clear_borders)
first_conv_noinline = _noinline(first_conv)
hidden_conv_noinline = _noinline(hidden_conv)
load_image_noinline = _noinline(load_image)
rotate_upright_noinline = _noinline(rotate_upright)
reduce_upright_noinline = _noinline(reduce_upright)
head_orientation_noinline = _noinline(head_orientation)
head_content_noinline = _noinline(head_content)
decoder_fc_noinline = _noinline(decoder_fc)
decoder_error_noinline = _noinline(decoder_error)
full_score_noinline = _noinline(full_score)
target_contrast_noinline = _noinline(target_contrast)


@triton.jit
def backbone(
    workspace_ptr, activations_ptr, sums_ptr, weights_ptr, params_ptr, barrier_ptr, goal, cta_rank,
    NET: tl.constexpr, FROM: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """COUNT convolutions from layer FROM on, from the workspace's pixels; returns the last feature map's address,
    and the barrier's goal."""
    stem: tl.constexpr = first_conv_noinline if NET.noinline else first_conv
    layer: tl.constexpr = hidden_conv_noinline if NET.noinline else hidden_conv
    stem(workspace_ptr, activations_ptr, weights_ptr, params_ptr, cta_rank, NET, FROM)
    goal = image_barrier(barrier_ptr, goal, NET)

    for i in tl.static_range(1, COUNT):
        layer(activations_ptr, sums_ptr, weights_ptr, params_ptr, cta_rank, NET, FROM + i)
        goal = image_barrier(barrier_ptr, goal, NET)
    return activations_ptr + NET.layers[FROM + COUNT - 1].output, goal


@triton.jit
def classify_image(
    image_ptr, weights_ptr, params_ptr, whitening_ptr, activations_ptr, workspace_ptr, barrier_ptr,
    probabilities_ptr, angle_ptr, score_ptr, uncertainty_ptr, goal, cta_rank,
    NET: tl.constexpr, PAD: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_FC: tl.constexpr,
):  # fmt: skip
    """One image. Image, activations, workspace, barrier and outputs point at what is the image's or its slot's own.
    goal, and what is returned: see `image_barrier`."""
    load: tl.constexpr = load_image_noinline if NET.noinline else load_image
    derotate: tl.constexpr = rotate_upright_noinline if NET.noinline else rotate_upright
    orientation: tl.constexpr = head_orientation_noinline if NET.noinline else head_orientation
    content: tl.constexpr = head_content_noinline if NET.noinline else head_content

    # 1. Orientation: θ of the image as it is. Behind a circular mask it reads a masked copy, "derotated" by 0.
    if NET.bins == 0:
        if cta_rank == 0:
            identity_orientation(workspace_ptr, angle_ptr, uncertainty_ptr, NET, PAD)
    else:
        scale = 1.0 if NET.circular_mask else 1.0 / 255.0
        if NET.int8:
            scale *= tl.load(params_ptr + NET.image_scale)
        if NET.circular_mask:
            derotate(image_ptr, workspace_ptr, params_ptr, scale, cta_rank, NET, BLOCK_SIZE, False)
        else:
            load(image_ptr, workspace_ptr, scale, cta_rank, NET, BLOCK_SIZE)
        goal = image_barrier(barrier_ptr, goal, NET)
        features_ptr, goal = backbone(
            workspace_ptr, activations_ptr, workspace_ptr + NET.workspace.orientation_sums, weights_ptr, params_ptr,
            barrier_ptr, goal, cta_rank, NET, 0, NET.orientation_layers,
        )  # fmt: skip
        if cta_rank == 0:
            orientation(features_ptr, workspace_ptr, angle_ptr, uncertainty_ptr, weights_ptr, params_ptr, NET, PAD)
        goal = image_barrier(barrier_ptr, goal, NET)

    # 2. Derotation.
    upright_scale = 1.0
    if NET.int8:
        upright_scale = tl.load(params_ptr + NET.upright_scale)
    derotate(image_ptr, workspace_ptr, params_ptr, upright_scale, cta_rank, NET, BLOCK_SIZE, NET.bins > 0)
    goal = image_barrier(barrier_ptr, goal, NET)

    # 3. Encoder and classifier; in the fast score mode this is all.
    features_ptr, goal = backbone(
        workspace_ptr, activations_ptr, workspace_ptr + NET.workspace.feature_sums, weights_ptr, params_ptr,
        barrier_ptr, goal, cta_rank, NET, NET.orientation_layers, NET.encoder_layers,
    )  # fmt: skip
    if cta_rank == 0:
        content(
            features_ptr, workspace_ptr, probabilities_ptr, score_ptr, weights_ptr, params_ptr, whitening_ptr,
            NET, PAD, BLOCK_FC,
        )  # fmt: skip

    # 4. Decoder, and the score with the reconstruction term.
    if not NET.score.fast:
        fc: tl.constexpr = decoder_fc_noinline if NET.noinline else decoder_fc
        layer: tl.constexpr = hidden_conv_noinline if NET.noinline else hidden_conv
        last: tl.constexpr = decoder_error_noinline if NET.noinline else decoder_error
        contrast: tl.constexpr = target_contrast_noinline if NET.noinline else target_contrast
        finish: tl.constexpr = full_score_noinline if NET.noinline else full_score
        MIDDLE: tl.constexpr = NET.orientation_layers + NET.encoder_layers
        if NET.reduction > 1:
            reduce: tl.constexpr = reduce_upright_noinline if NET.noinline else reduce_upright
            reduce(workspace_ptr, cta_rank, NET, BLOCK_SIZE)
        goal = image_barrier(barrier_ptr, goal, NET)
        fc(workspace_ptr, activations_ptr + NET.layers[MIDDLE].source, weights_ptr, params_ptr, cta_rank, NET)
        goal = image_barrier(barrier_ptr, goal, NET)
        layer(activations_ptr, workspace_ptr, weights_ptr, params_ptr, cta_rank, NET, MIDDLE)
        goal = image_barrier(barrier_ptr, goal, NET)
        if cta_rank == NET.ctas_per_image - 1:  # which has the fewest tiles
            contrast(workspace_ptr, NET, BLOCK_SIZE)
        last(workspace_ptr, activations_ptr, weights_ptr, params_ptr, cta_rank, NET, MIDDLE + 1)
        goal = image_barrier(barrier_ptr, goal, NET)
        if cta_rank == 0:
            finish(workspace_ptr, params_ptr, score_ptr, NET)
    return goal


@triton.jit(do_not_specialize=["n_images"])
def network(
    image_ptr, weights_ptr, params_ptr, whitening_ptr, activations_ptr, workspace_ptr, barrier_ptr,
    probabilities_ptr, angle_ptr, score_ptr, uncertainty_ptr, n_images,
    NET: tl.constexpr, PAD: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_FC: tl.constexpr,
):  # fmt: skip
    """image uint8 [N, height, width, channels] to probabilities [N, classes], angle [N] in radians, score [N] and
    uncertainty [N, 3] (angle confidence, second angle, second angle probability), float32.

    Grid: (slots, ctas_per_image). Slot s processes images s, s + slots, …. Where ctas_per_image is above 1, all
    programs must be resident at the same time, because they wait for one another: a cooperative launch.

    NET.noinline compiles each step as a function of its own. Inlined, common subexpressions stay live from step to step
    (Triton 3.9): twice the registers, and spills.

    Args:
        weights_ptr, params_ptr, whitening_ptr: the network's constants, laid out as NET says.
        activations_ptr: [slots, activation_size], of the weights' type.
        workspace_ptr: float32 [slots, workspace_size].
        barrier_ptr: int32 [slots], zeros before the first launch; used if ctas_per_image is above 1.
        n_images: N.
        NET, PAD: the layout with its tiles, and its vectors' lengths.
        BLOCK_SIZE: pixels of a step that goes over an image element by element.
        BLOCK_FC: rows of the score's projection that are added up at a time.
    """
    IMAGE_SIZE: tl.constexpr = NET.height * NET.width * NET.channels
    slot = tl.program_id(0)
    cta_rank = tl.program_id(1)
    slot64 = slot.to(tl.int64)
    activations_ptr = activations_ptr + slot64 * NET.activation_size
    workspace_ptr = workspace_ptr + slot64 * NET.workspace_size

    clear: tl.constexpr = clear_borders_noinline if NET.noinline else clear_borders
    clear(activations_ptr, cta_rank, NET)
    goal = first_goal(barrier_ptr + slot, NET)
    for image in range(slot, n_images, tl.num_programs(0)):
        n = slot64 * 0 + image
        goal = classify_image(
            image_ptr + n * IMAGE_SIZE, weights_ptr, params_ptr, whitening_ptr, activations_ptr, workspace_ptr,
            barrier_ptr + slot, probabilities_ptr + n * NET.classes, angle_ptr + n, score_ptr + n,
            uncertainty_ptr + n * 3, goal, cta_rank, NET, PAD, BLOCK_SIZE, BLOCK_FC,
        )  # fmt: skip
        goal = image_barrier(barrier_ptr + slot, goal, NET)


def forward(
    net: NetworkLayout, image: Any, weights: Any, params: Any, whitening: Any, activations: Any, workspace: Any,
    barrier: Any, probabilities: Any, angle: Any, score: Any, uncertainty: Any, ctas_per_image: int = 1,
) -> None:  # fmt: skip
    """Launch on the current device and stream; all tensors are contiguous, the last seven are written.

    Args:
        net: the network's layout.
        image: uint8 [N, H, W, C].
        weights: float16 or int8 [net.weights_size].
        params: float32 [net.params_size].
        whitening: float16 [clusters, components, padded(components)].
        activations: of the weights' dtype, [slots, net.activation_size]; slots is how many images run at a time.
        workspace: float32 [slots, net.workspace_size].
        barrier: int32 [slots], zeros when it is used for the first time; read if ctas_per_image is above 1.
        probabilities: float32 [N, K].
        angle, score: float32 [N].
        uncertainty: float32 [N, 3]: angle confidence, second angle, second angle probability; zeros without an
            orientation encoder.
        ctas_per_image: programs that work on an image together, a power of two. Those of all slots must fit on the GPU
            at once.
    """
    if image.shape[0] == 0:
        return
    tuned, config = tuned_layout(net, current_architecture(), ctas_per_image)
    cooperative = {"launch_cooperative_grid": True} if ctas_per_image > 1 else {}
    network[(min(image.shape[0], activations.shape[0]), ctas_per_image)](
        image, weights, params, whitening, activations, workspace, barrier, probabilities, angle, score, uncertainty,
        image.shape[0], NET=tuned, PAD=padded_sizes(net), enable_fp_fusion=not net.int8, **cooperative, **config,
    )  # fmt: skip


def tuned_layout(
    net: NetworkLayout, architecture: int | None, ctas_per_image: int = 1
) -> tuple[NetworkLayout, dict[str, int]]:
    """The layout with its tiles, and the rest of the kernel's configuration on an architecture."""
    key = f"{'int8' if net.int8 else 'fp16'}{'_multi_cta' if ctas_per_image > 1 else ''}"
    config = dict(get_config(OPERATOR, key, architecture))
    return with_tile_config(
        net,
        warps=config["num_warps"],
        warp_tiles=config.pop("WARP_TILES"),
        ahead_registers=config.pop("AHEAD_REGISTERS"),
        noinline=config.pop("NOINLINE"),
        ctas_per_image=ctas_per_image,
    ), config


def kernel_spec(net: NetworkLayout, architecture: int, ctas_per_image: int = 1) -> KernelSpec:
    """The network for the ahead-of-time compiler. Images and outputs need no alignment."""
    tuned, config = tuned_layout(net, architecture, ctas_per_image)
    activation = "*i8" if net.int8 else "*fp16"
    types = {name: "*fp32" for name in network.arg_names if name.endswith("_ptr")}
    types |= {"image_ptr": "*u8", "weights_ptr": activation, "activations_ptr": activation, "whitening_ptr": "*fp16"}
    types |= {"barrier_ptr": "*i32", "n_images": "i32"}
    return KernelSpec(
        name="network" if ctas_per_image == 1 else "network_multi_cta",
        operator=OPERATOR,
        function=network,
        types=types,
        constants={
            "NET": tuned,
            "PAD": padded_sizes(net),
            "BLOCK_SIZE": config["BLOCK_SIZE"],
            "BLOCK_FC": config["BLOCK_FC"],
        },
        aligned=("weights_ptr", "params_ptr", "whitening_ptr", "activations_ptr", "workspace_ptr"),
        num_warps=config["num_warps"],
        num_stages=config["num_stages"],
        fp_fusion=not net.int8,
    )
