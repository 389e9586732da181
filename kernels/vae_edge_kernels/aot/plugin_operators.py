"""What nodes compute that are plugins of TensorRT: one description an operator.

A description maps the node's inputs, outputs and attributes to the parameters of a kernel, and gives its grid.
Everything is known when the engine is built but the batch. So attributes and sizes are constants of the kernel, and
what depends on the batch is an expression, which TensorRT evaluates at each launch: a number, ("dim", input, axis), or
(operation, left, right). `aot.plugins` compiles what is described here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vae_edge_kernels import KernelError
from vae_edge_kernels.config import KernelSpec

MAX_SLOTS = 256  # images of a network at a time, and with it the size of its scratch memory

Expression = int | tuple[Any, ...]


def dim(number: int, axis: int) -> Expression:
    """A dimension of an input."""
    return ("dim", number, axis)


def operation(name: str, left: Expression, right: Expression) -> Expression:
    """left `name` right, computed now if both are numbers."""
    if isinstance(left, int) and isinstance(right, int):
        return {
            "+": left + right,
            "-": left - right,
            "*": left * right,
            "//": left // max(right, 1),
            "cdiv": -(-left // max(right, 1)),
            "min": min(left, right),
        }[name]
    return (name, left, right)


Launch = tuple[KernelSpec, tuple[Expression, Expression, Expression]]
"""A kernel for one architecture, and its grid."""


@dataclass(frozen=True)
class TensorType:
    """Type of an input. `dtype` is Triton's name; the shape has None for the batch."""

    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Buffer:
    """What a kernel writes: its parameter's name, dtype (Triton's name) and shape."""

    name: str
    dtype: str
    shape: tuple[Expression, ...]


@dataclass(frozen=True)
class PluginKernel:
    """The kernel of a node.

    Attributes:
        inputs: names of the kernel's parameters for the node's inputs, in order.
        outputs: for the node's outputs, in order.
        scratch: memory to work in.
        scalars: its 32-bit integers, in order.
        launch: gives, for an architecture and a variant, the kernel and its grid.
        variants: how many there are, from which TensorRT may choose the fastest.
        aliases: parameters of which nothing is read, by the input whose address they take.
    """

    inputs: tuple[str, ...]
    outputs: tuple[Buffer, ...]
    scratch: tuple[Buffer, ...]
    scalars: tuple[tuple[str, Expression], ...]
    launch: Callable[[int, int], Launch]
    variants: int = 1
    aliases: tuple[tuple[str, str], ...] = ()


# ---- The operators --------------------------------------------------------------------------------------------------

Inputs = Sequence[TensorType]
Attributes = Mapping[str, Any]


def _network(inputs: Inputs, attributes: Attributes) -> PluginKernel:
    """image uint8 or float16 [N, H, W, C] with whole numbers 0 to 255, weights, params, whitening; `layout` as JSON."""
    from vae_edge_kernels import network
    from vae_edge_kernels.config import get_config, override_config
    from vae_edge_kernels.layout import from_json, padded

    net = from_json(attributes["layout"])
    weights, (components, clusters) = "i8" if net.int8 else "fp16", (net.score.components, net.score.clusters)
    _check("VaeEdgeNetwork", "image", inputs[0], ("u8", "fp16"), (None, net.height, net.width, net.channels))
    _check("VaeEdgeNetwork", "weights", inputs[1], (weights,), (net.weights_size,))
    _check("VaeEdgeNetwork", "params", inputs[2], ("fp32",), (net.params_size,))
    _check("VaeEdgeNetwork", "whitening", inputs[3], ("fp16",), (clusters, components, padded(components)))
    n, key = dim(0, 0), "int8" if net.int8 else "fp16"
    slots = operation("min", n, MAX_SLOTS)

    def launch(architecture: int, variant: int) -> Launch:
        config = get_config(network.OPERATOR, key, architecture)
        warps = config["num_warps"]
        config = {**config, "num_warps": warps if variant == 0 else 8 if warps == 4 else 4}
        with override_config(network.OPERATOR, key, config):
            spec = network.kernel_spec(net, architecture)
        return replace(spec, types={**spec.types, "image_ptr": f"*{inputs[0].dtype}"}), (slots, 1, 1)

    return PluginKernel(
        inputs=("image_ptr", "weights_ptr", "params_ptr", "whitening_ptr"),
        outputs=(
            Buffer("probabilities_ptr", "fp32", (n, net.classes)),
            Buffer("angle_ptr", "fp32", (n,)),
            Buffer("score_ptr", "fp32", (n,)),
            Buffer("uncertainty_ptr", "fp32", (n, 3)),
        ),
        scratch=(
            Buffer("activations_ptr", weights, (slots, net.activation_size)),
            Buffer("workspace_ptr", "fp32", (slots, net.workspace_size)),
        ),
        scalars=(("n_images", n),),
        launch=launch,
        variants=2,
    )


def _rotate(inputs: Inputs, attributes: Attributes) -> PluginKernel:
    """x uint8, float16 or float32 [N, H, W, C], cos, sin float32 [N]; attributes of `rotate_pixels`."""
    from vae_edge_kernels import rotate
    from vae_edge_kernels.config import as_float32, get_config

    _check("VaeEdgeRotate", "x", inputs[0], ("u8", "fp16", "fp32"), (None, *_sizes("VaeEdgeRotate", inputs[0], 4)))
    for name, given in (("cos", inputs[1]), ("sin", inputs[2])):
        _check("VaeEdgeRotate", name, given, ("fp32",), (None,))
    height, width, channels = _sizes("VaeEdgeRotate", inputs[0], 4)
    size, output = height * width * channels, str(attributes["dtype"])
    input_scale, fill = float(attributes["input_scale"]), float(attributes["fill"])

    def launch(architecture: int, variant: int) -> Launch:
        config = get_config(rotate.OPERATOR, rotate.config_key(output), architecture)
        spec = KernelSpec(
            name=f"rotate_{inputs[0].dtype}_{output}",
            operator=rotate.OPERATOR,
            function=rotate.rotate,
            types={
                "x_ptr": f"*{inputs[0].dtype}",
                "cos_ptr": "*fp32",
                "sin_ptr": "*fp32",
                "y_ptr": f"*{output}",
            },
            constants={
                "size": size,
                "width": width,
                "channels": channels,
                "scale": as_float32(attributes["scale"]),
                "fill": as_float32(fill),
                "inv_input_scale": as_float32(1.0 / (input_scale or 1.0)),
                "input_scale": as_float32(input_scale),
                "inv_output_scale": as_float32(attributes["inv_output_scale"]),
                "BLOCK_SIZE": config["BLOCK_SIZE"],
                "MASKED": int(attributes["masked"]),
                "QUANTIZED": int(input_scale > 0),
                "HAS_FILL": int(fill != 0.0),
            },
            aligned=(),
            num_warps=config["num_warps"],
            num_stages=config["num_stages"],
        )
        return spec, (dim(0, 0), operation("cdiv", size, config["BLOCK_SIZE"]), 1)

    return PluginKernel(
        inputs=("x_ptr", "cos_ptr", "sin_ptr"),
        outputs=(Buffer("y_ptr", output, (dim(0, 0), height, width, channels)),),
        scratch=(),
        scalars=(),
        launch=launch,
    )


def _reparameterize(inputs: Inputs, attributes: Attributes) -> PluginKernel:
    """mu, logvar float32 or float16 [N, Z]; seed, offset int64 of one element, read on the GPU."""
    from vae_edge_kernels import reparameterize
    from vae_edge_kernels.config import get_config

    operator, dtype = "VaeEdgeReparameterize", inputs[0].dtype
    (columns,) = _sizes(operator, inputs[0], 2)
    for name, given in (("mu", inputs[0]), ("logvar", inputs[1])):
        _check(operator, name, given, ("fp32", "fp16") if name == "mu" else (dtype,), (None, columns))
    for name, given in (("seed", inputs[2]), ("offset", inputs[3])):
        _check(operator, name, given, ("i64",), (1,) if len(given.shape) else ())

    def launch(architecture: int, variant: int) -> Launch:
        config = get_config(reparameterize.OPERATOR, "forward", architecture)
        spec = KernelSpec(
            name=f"reparameterize_{dtype}",
            operator=reparameterize.OPERATOR,
            function=reparameterize.reparameterize_from_memory,
            types={
                **dict.fromkeys(("mu_ptr", "logvar_ptr", "z_ptr"), f"*{dtype}"),
                "kl_ptr": "*fp32",
                "seed_ptr": "*i64",
                "offset_ptr": "*i64",
                "rows": "i32",
            },
            constants={"columns": columns, "ROWS": config["ROWS"], "COLUMNS": config["COLUMNS"]},
            aligned=(),
            num_warps=config["num_warps"],
            num_stages=config["num_stages"],
        )
        return spec, (operation("cdiv", dim(0, 0), config["ROWS"]), 1, 1)

    return PluginKernel(
        inputs=("mu_ptr", "logvar_ptr", "seed_ptr", "offset_ptr"),
        outputs=(Buffer("z_ptr", dtype, (dim(0, 0), columns)), Buffer("kl_ptr", "fp32", (dim(0, 0),))),
        scratch=(),
        scalars=(("rows", dim(0, 0)),),
        launch=launch,
    )


def _conv(operator: str, function: str, weight_axes: str, pointers: tuple[str, ...], dtypes: tuple[str, ...]) -> Any:
    """The description of a convolution.

    Args:
        operator: type of the node.
        function: kernel of `vae_edge_kernels.conv`.
        weight_axes: order of the weight's axes: "RSCK".
        pointers: names of the node's inputs, which the kernel's parameters have with `_ptr`; x and w come first. A
            `residual` at the end may be left out.
        dtypes: that x may have.
    """
    is_stem, is_int8 = function.startswith("stem"), "int8" in function

    def describe(inputs: Inputs, attributes: Attributes) -> PluginKernel:
        from vae_edge_kernels import conv
        from vae_edge_kernels.config import as_float32, block_n_for, get_config
        from vae_edge_kernels.implicit_gemm import use_split_n

        x, weight = inputs[:2]
        height, width, channels = _sizes(operator, x, 4)
        _check(operator, "x", x, dtypes, (None, height, width, channels))
        weights = ("i8",) if is_int8 else ("fp16", "fp32") if is_stem else (x.dtype,)
        _check(operator, "weight", weight, weights, tuple(weight.shape))
        axes = dict(zip(weight_axes, weight.shape, strict=True))
        kernel_h, kernel_w, out_channels = (int(axes[axis] or 0) for axis in "RSK")
        if axes["C"] != channels:
            raise KernelError(f"{operator}: x has {channels} channels, and the weight is for {axes['C']}.")
        stride, pad_top, pad_left = (int(attributes[name]) for name in ("stride", "pad_top", "pad_left"))
        out_height = (height + 2 * pad_top - kernel_h) // stride + 1
        out_width = (width + 2 * pad_left - kernel_w) // stride + 1
        has_residual = "residual" in pointers and len(inputs) == len(pointers)
        output = str(attributes.get("dtype", "i8")) if is_int8 else weight.dtype
        for name, given in zip(pointers[2:], inputs[2:], strict=False):
            if name == "residual":
                _check(operator, name, given, (x.dtype,), (None, out_height, out_width, out_channels))
            else:
                _check(operator, name, given, ("fp32",), (out_channels,))
        m = operation("*", dim(0, 0), out_height * out_width)
        numbers: dict[str, Any] = {
            "height": height,
            "width": width,
            "in_channels": channels,
            "out_height": out_height,
            "out_width": out_width,
            "out_channels": out_channels,
            "kernel_h": kernel_h,
            "kernel_w": kernel_w,
            "stride": stride,
            "pad_top": pad_top,
            "pad_left": pad_left,
            "has_residual": int(has_residual),
            "apply_relu": int(attributes["relu"]),
            "scale": as_float32(attributes.get("scale", 1.0)),
            "inv_x_scale": as_float32(attributes.get("inv_x_scale", 1.0)),
            "residual_scale": as_float32(attributes.get("residual_scale", 1.0)) if has_residual else 0.0,
        }

        def launch(architecture: int, variant: int) -> Launch:
            kernel = getattr(conv, function)
            vectorized = is_stem or all(count % conv.VECTOR_CHANNELS == 0 for count in (channels, out_channels))
            kind = f"stem_conv_{weight.dtype}" if is_stem else f"conv_{x.dtype}"
            key = conv.config_key(kind, block_n_for(out_channels), vectorized)
            config = dict(get_config(conv.OPERATOR, key, architecture))
            if is_stem:
                params = conv.ConvParams(kernel_h, kernel_w, stride, pad_top, pad_left)
                config["BLOCK_K"] = params.stem_block_k(channels)
            if "SPLIT_N" in kernel.arg_names:
                config |= {"SPLIT_N": use_split_n(architecture), "KERNEL_ROWS": int(vectorized)}
            types = {f"{name}_ptr": f"*{given.dtype}" for name, given in zip(pointers, inputs, strict=False)}
            types |= {"y_ptr": f"*{output}", "M": "i32"}
            if "residual_ptr" in kernel.arg_names:
                types.setdefault("residual_ptr", f"*{x.dtype}")
            constants = {name: config.get(name, numbers.get(name)) for name in kernel.arg_names if name not in types}
            aligned = tuple(name for name in types if name.endswith("_ptr") and not (is_stem and name == "x_ptr"))
            spec = KernelSpec(
                name=f"{function}_{output}",
                operator=conv.OPERATOR,
                function=kernel,
                types=types,
                constants=constants,
                aligned=aligned if vectorized else (),
                num_warps=config["num_warps"],
                num_stages=config["num_stages"],
                fp_fusion=not is_int8,
            )
            return spec, (
                operation("cdiv", m, config["BLOCK_M"]),
                operation("cdiv", out_channels, config["BLOCK_N"]),
                1,
            )

        return PluginKernel(
            inputs=tuple(f"{name}_ptr" for name in pointers[: len(inputs)]),
            outputs=(Buffer("y_ptr", output, (dim(0, 0), out_height, out_width, out_channels)),),
            scratch=(),
            scalars=(("M", m),),
            launch=launch,
            aliases=(("residual_ptr", "x_ptr"),) if "residual" in pointers and not has_residual else (),
        )

    return describe


def _avg_pool(inputs: Inputs, attributes: Attributes) -> PluginKernel:
    """x float32, float16 or int8 [N, H, W, C]; `scale`."""
    from vae_edge_kernels.avg_pool import avg_pool_kernel
    from vae_edge_kernels.config import as_float32, block_n_for, get_config

    operator = "VaeEdgeAvgPool"
    height, width, channels = _sizes(operator, inputs[0], 4)
    _check(operator, "x", inputs[0], ("fp32", "fp16", "i8"), (None, height, width, channels))
    block_n = block_n_for(channels)

    def launch(architecture: int, variant: int) -> Launch:
        config = get_config("avg_pool", "avg_pool", architecture)
        spec = KernelSpec(
            name=f"avg_pool_{inputs[0].dtype}",
            operator="avg_pool",
            function=avg_pool_kernel,
            types={"x_ptr": f"*{inputs[0].dtype}", "y_ptr": "*fp32"},
            constants={
                "pixels": height * width,
                "channels": channels,
                "scale": as_float32(attributes["scale"]),
                "BLOCK_M": config["BLOCK_M"],
                "BLOCK_N": block_n,
            },
            aligned=(),
            num_warps=config["num_warps"],
            num_stages=config["num_stages"],
        )
        return spec, (dim(0, 0), operation("cdiv", channels, block_n), 1)

    outputs = (Buffer("y_ptr", "fp32", (dim(0, 0), channels)),)
    return PluginKernel(inputs=("x_ptr",), outputs=outputs, scratch=(), scalars=(), launch=launch)


def _head(operator: str, function: str) -> Any:
    """The description of one of a network's heads; `layout` as JSON. Its inputs are the kernel's first parameters."""

    def describe(inputs: Inputs, attributes: Attributes) -> PluginKernel:
        from vae_edge_kernels import heads
        from vae_edge_kernels.layout import from_json

        net = from_json(attributes["layout"])
        specs = {spec.name: spec for spec in heads.network_variants(net, 87)}
        if function not in specs:
            raise KernelError(f"{operator}: the network of this layout has no orientation encoder.")
        types, names = specs[function].types, specs[function].function.arg_names[: len(inputs)]
        known = {"weights_ptr": (net.weights_size,), "params_ptr": (net.params_size,)}
        for name, given in zip(names, inputs, strict=True):
            shape = known.get(name, given.shape)
            _check(operator, name.removesuffix("_ptr"), given, (types[name][1:],), shape)
        n = dim(0, 0)
        outputs = {
            "orientation_head": (
                Buffer("logits_ptr", "fp32", (n, net.classes)),
                Buffer("orientation_ptr", "fp32", (n, 6)),
            ),
            "content_head": (
                Buffer("probabilities_ptr", "fp32", (n, net.classes)),
                Buffer("code_ptr", "fp32", (n, net.latent + net.classes)),
                Buffer("score_ptr", "fp32", (n, 2)),
            ),
        }[function]

        def launch(architecture: int, variant: int) -> Launch:
            (spec,) = (each for each in heads.network_variants(net, architecture) if each.name == function)
            return spec, (n, 1, 1)

        return PluginKernel(inputs=tuple(names), outputs=outputs, scratch=(), scalars=(), launch=launch)

    return describe


def _reconstruction_error(inputs: Inputs, attributes: Attributes) -> PluginKernel:
    """decoded [N, rows, columns, P], upright [N, H, W, C], score float32 [N, 2], weight float32 [1]; `block`."""
    from vae_edge_kernels.config import get_config
    from vae_edge_kernels.layout import reduced
    from vae_edge_kernels.reconstruction_error import reconstruction_error_kernel

    operator, block = "VaeEdgeReconstructionError", int(attributes["block"])
    decoded, upright, score, weight = inputs[:4]
    height, width, channels = _sizes(operator, upright, 4)
    rows, columns = reduced((height, width), block)
    _check(operator, "upright", upright, ("fp32", "fp16"), (None, height, width, channels))
    _check(operator, "decoded", decoded, ("fp32", "fp16"), (None, rows, columns, channels * block * block))
    _check(operator, "score", score, ("fp32",), (None, 2))
    _check(operator, "weight", weight, ("fp32",), (1,))

    def launch(architecture: int, variant: int) -> Launch:
        config = get_config("reconstruction_error", "reconstruction_error", architecture)
        spec = KernelSpec(
            name="reconstruction_error",
            operator="reconstruction_error",
            function=reconstruction_error_kernel,
            types={
                "decoded_ptr": f"*{decoded.dtype}",
                "image_ptr": f"*{upright.dtype}",
                **dict.fromkeys(("score_ptr", "weight_ptr", "total_ptr"), "*fp32"),
            },
            constants={
                "grid": columns,
                "block": block,
                "side": width,
                "channels": channels,
                "BLOCK_SIZE": config["BLOCK_SIZE"],
                "HEIGHT": 0 if height == width else height,
            },
            aligned=(),
            num_warps=config["num_warps"],
            num_stages=config["num_stages"],
        )
        return spec, (dim(0, 0), 1, 1)

    return PluginKernel(
        inputs=("decoded_ptr", "image_ptr", "score_ptr", "weight_ptr"),
        outputs=(Buffer("total_ptr", "fp32", (dim(0, 0),)),),
        scratch=(),
        scalars=(),
        launch=launch,
    )


_FLOATS, _PIXELS = ("fp32", "fp16"), ("u8", "fp16", "fp32")
OPERATORS: dict[str, tuple[int, Callable[[Inputs, Attributes], PluginKernel]]] = {
    "VaeEdgeNetwork": (4, _network),
    "VaeEdgeRotate": (3, _rotate),
    "VaeEdgeReparameterize": (4, _reparameterize),
    "VaeEdgeConv": (3, _conv("VaeEdgeConv", "conv_kernel", "RSCK", ("x", "w", "bias", "residual"), _FLOATS)),
    "VaeEdgeStemConv": (3, _conv("VaeEdgeStemConv", "stem_conv_kernel", "RSCK", ("x", "w", "bias"), _PIXELS)),
    "VaeEdgeConvInt8": (
        4,
        _conv("VaeEdgeConvInt8", "conv_int8_kernel", "RSKC", ("x", "w", "scale", "bias", "residual"), ("i8",)),
    ),
    "VaeEdgeStemConvInt8": (
        4,
        _conv("VaeEdgeStemConvInt8", "stem_conv_int8_kernel", "KRSC", ("x", "w", "scale", "bias"), ("i8", *_PIXELS)),
    ),
    "VaeEdgeAvgPool": (1, _avg_pool),
    "VaeEdgeOrientationHead": (3, _head("VaeEdgeOrientationHead", "orientation_head")),
    "VaeEdgeContentHead": (8, _head("VaeEdgeContentHead", "content_head")),
    "VaeEdgeReconstructionError": (4, _reconstruction_error),
}
"""By the node's type: the fewest inputs, and the description."""


def describe(operator: str, inputs: Inputs, attributes: Attributes) -> PluginKernel:
    """The kernel of a node.

    Args:
        operator: type of the node, of `OPERATORS`.
        inputs: types of its inputs, in order.
        attributes: of the node, under the names of the operator's fields; types as Triton's names.

    Raises:
        KernelError: there is no such operator, or inputs or attributes do not fit it.
    """
    if operator not in OPERATORS:
        raise KernelError(f"There is no plugin {operator}: there are {', '.join(OPERATORS)}.")
    fewest, build = OPERATORS[operator]
    if len(inputs) < fewest:
        raise KernelError(f"{operator} has at least {fewest} inputs; the node has {len(inputs)}.")
    try:
        return build(inputs, attributes)
    except KeyError as error:
        raise KernelError(f"The node {operator} has no attribute {error.args[0]!r}; give it.") from error


def _sizes(operator: str, given: TensorType, rank: int) -> tuple[int, ...]:
    """The known sizes behind the batch."""
    if len(given.shape) != rank or any(side is None for side in given.shape[1:]):
        raise KernelError(
            f"{operator} needs its first input with {rank} axes, of which only the batch may be unknown; it has "
            f"{list(given.shape)}."
        )
    return tuple(int(side or 0) for side in given.shape[1:])


def _check(operator: str, name: str, given: TensorType, dtypes: Sequence[str], shape: Sequence[int | None]) -> None:
    fits = len(given.shape) == len(shape) and all(
        wanted is None or side == wanted for side, wanted in zip(given.shape, shape, strict=True)
    )
    if given.dtype not in dtypes or not fits:
        raise KernelError(
            f"{operator} takes {name} as {' or '.join(dtypes)} {list(shape)}; the node has {given.dtype} "
            f"{list(given.shape)}."
        )
