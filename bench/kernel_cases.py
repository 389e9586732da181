"""What the kernels' benchmark runs: each kernel on some shapes, what it should give, and what others need for the same.

A case makes its tensors when it is asked for its `Run`, so that only one is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from benchmark_case import (
    BATCHES,
    DEVICE,
    PRESETS,
    SCALE,
    Case,
    Run,
    max_error,
    max_rel_error,
    pixels,
    poison,
    random,
    small_integers,
)
from synthetic_models import untrained
from torch import Tensor
from vae_edge_kernels import avg_pool as pool_kernels
from vae_edge_kernels import conv, reparameterize, rotate
from vae_edge_kernels import heads as head_kernels
from vae_edge_kernels import reconstruction_error as error_kernels
from vae_edge_kernels.conv import ConvParams
from vae_edge_kernels.layout import ConvLayout, to_json
from whole_networks import network_cases

from vae_edge.model.network import layout_for_preset
from vae_edge.ops import heads
from vae_edge.ops.conv import fma
from vae_edge.ops.packing import pack
from vae_edge.ops.reparameterize import reparameterize as reparameterize_op
from vae_edge.ops.rotate import rotate_pixels

LARGE = (  # side, inputs, outputs, stride, taps
    *((56, 64, 64, 1, 3), (28, 128, 128, 1, 3), (14, 256, 256, 1, 3), (56, 128, 128, 2, 3)),
    *((56, 64, 256, 1, 1), (28, 256, 128, 1, 1), (28, 64, 64, 1, 5)),
)
LARGE_BATCHES = (32, 256)


def preset_layers() -> dict[tuple[int, int, int, int, int], str]:
    """The presets' convolutions, each shape once: (side, inputs, outputs, stride, taps) to where it is first found."""
    found: dict[tuple[int, int, int, int, int], str] = {}
    for name in PRESETS:
        for layer in layout_for_preset(name).layers:
            found.setdefault(shape_of(layer), name)
    return found


def shape_of(layer: ConvLayout) -> tuple[int, int, int, int, int]:
    """A layer's sizes, as in LARGE."""
    return layer.height, layer.in_channels, layer.out_channels, layer.stride, layer.kernel_size


def label(shape: tuple[int, int, int, int, int]) -> str:
    """A convolution in words."""
    side, inputs, outputs, stride, taps = shape
    return f"{side}×{side}×{inputs} to {outputs}, {taps}×{taps}{' / 2' if stride == 2 else ''}"


def cases(large: bool = True) -> Iterator[Case]:
    """Every case: the whole networks, kernels on the presets' layers, then on large shapes."""
    yield from network_cases()
    shapes = [(shape, batch) for shape in preset_layers() for batch in BATCHES]
    shapes += [(shape, batch) for shape in LARGE for batch in LARGE_BATCHES] if large else []
    for shape, batch in shapes:
        made = conv_cases(shape, batch) if shape[1] >= 16 else stem_cases(shape, batch)
        yield from made
    for side, channels, batch in ((28, 1, 1), (28, 1, 32), (28, 1, 256), (64, 3, 4096)):
        layer = f"{side}×{side}×{channels}"
        yield Case("rotate_u8_fp16", layer, batch, lambda s=side, c=channels, n=batch: rotating(s, c, n))
    for rows, columns in ((1, 24), (256, 24), (65536, 64), (1048576, 64)):
        for name in ("fp32", "fp16"):
            yield Case(
                f"reparameterize_{name}", f"{columns} columns", rows, lambda r=rows, c=columns, d=name: noise(r, c, d)
            )
    for batch in BATCHES:
        yield Case("avg_pool_fp16", "14×14×32", batch, lambda n=batch: avg_pool(n))
        yield Case("reconstruction_error_fp16", "28×28×1", batch, lambda n=batch: comparing(n))
        yield Case("orientation_head_fp16", "small", batch, lambda n=batch: orientation(n))


def conv_cases(shape: tuple[int, int, int, int, int], batch: int) -> Iterator[Case]:
    """A convolution in each precision."""
    for kernel, make in (("fp16", fp16), ("int8", int8), ("fp8", fp8)):
        if kernel == "fp8" and torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9):
            continue
        yield Case(f"conv_{kernel}", label(shape), batch, lambda s=shape, n=batch, m=make: m(s, n))


def stem_cases(shape: tuple[int, int, int, int, int], batch: int) -> Iterator[Case]:
    """A first layer from bytes, in each precision."""
    yield Case("stem_conv_fp16", label(shape), batch, lambda: stem_fp16(shape, batch))
    yield Case("stem_conv_int8", label(shape), batch, lambda: stem_int8(shape, batch))


def exact(x: Tensor, w: Tensor, stride: int) -> Tensor:
    """Float64 convolution of x [N, H, W, C] and w [R, S, C, K], image by image where there are many."""
    w = w.double().permute(3, 2, 0, 1)
    parts = [F.conv2d(part.double().permute(0, 3, 1, 2), w, None, stride, w.shape[2] // 2) for part in x.split(32)]
    return torch.cat(parts).permute(0, 2, 3, 1)


def sizes(shape: tuple[int, int, int, int, int], batch: int, element: int) -> tuple[int, int]:
    """Bytes and multiply-accumulates of a convolution."""
    side, inputs, outputs, stride, taps = shape
    out = -(-side // stride)
    weights = taps * taps * inputs * outputs
    return element * (batch * (side * side * inputs + out * out * outputs) + weights), batch * out * out * weights


def fp16_baselines(x: Tensor, w: Tensor, bias: Tensor, stride: int) -> dict[str, Callable[[], Any]]:
    """A convolution with bias and ReLU by PyTorch, on the same memory seen as channels-last."""
    pad = w.shape[0] // 2
    image, filter, offset = x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1).contiguous(), bias.half()
    filter = filter.contiguous(memory_format=torch.channels_last)

    def fused() -> Tensor:
        return torch.cudnn_convolution_relu(image, filter, offset, [stride] * 2, [pad] * 2, [1, 1], 1)

    return {"eager": lambda: F.relu(F.conv2d(image, filter, offset, stride, pad)), "cudnn": fused}


def fp16(shape: tuple[int, int, int, int, int], batch: int) -> Run:
    """A convolution in float16."""
    side, inputs, outputs, stride, taps = shape
    x = random(batch, side, side, inputs).half()
    w = (random(taps, taps, inputs, outputs) / (taps * inputs**0.5)).half()
    bias, out = random(outputs), -(-side // stride)
    y = x.new_full((batch, out, out, outputs), float("nan"))
    params = ConvParams(taps, taps, stride, taps // 2, taps // 2)

    def ours() -> Tensor:
        conv.conv_forward(x, w, bias, None, y, params, True)
        return y

    baselines = fp16_baselines(x, w, bias, stride)
    bytes_moved, macs = sizes(shape, batch, 2)

    def check() -> float:
        poison(y)
        return max_rel_error(ours(), (exact(x, w, stride) + bias.double()).relu())

    return Run(ours, check, 2e-3, baselines, bytes_moved, macs, baselines["eager"])


def int8(shape: tuple[int, int, int, int, int], batch: int) -> Run:
    """A convolution in int8, to int8; the baseline is cuDNN in float16."""
    side, inputs, outputs, stride, taps = shape
    x, w = small_integers(batch, side, side, inputs), small_integers(taps, taps, outputs, inputs)
    scale = random(outputs).abs() / (50.0 * taps * inputs**0.5)
    bias, out = 20.0 * random(outputs), -(-side // stride)
    y = torch.full((batch, out, out, outputs), 85, dtype=torch.int8, device=DEVICE)
    params = ConvParams(taps, taps, stride, taps // 2, taps // 2)

    def ours() -> Tensor:
        conv.conv_int8_forward(x, w, scale, bias, None, y, params, True, 1.0)
        return y

    def check() -> float:
        poison(y)
        value = fma(exact(x, w.permute(0, 1, 3, 2), stride).round(), scale, bias).relu()
        return float((value.clamp(-128, 127).round() != ours()).sum())

    bytes_moved, macs = sizes(shape, batch, 1)
    baselines = fp16_baselines(x.half(), w.permute(0, 1, 3, 2).half(), bias, stride)
    return Run(ours, check, 0.0, {"cudnn fp16": baselines["cudnn"]}, bytes_moved, macs)


def fp8(shape: tuple[int, int, int, int, int], batch: int) -> Run:
    """A convolution in fp8, to float16; the baseline is cuDNN in float16."""
    side, inputs, outputs, stride, taps = shape
    x = random(batch, side, side, inputs).to(torch.float8_e4m3fn)
    w = random(taps, taps, outputs, inputs).to(torch.float8_e4m3fn)
    scale = random(outputs).abs() / (taps * inputs**0.5)
    bias, out = random(outputs), -(-side // stride)
    y = torch.full((batch, out, out, outputs), float("nan"), dtype=torch.float16, device=DEVICE)
    params = ConvParams(taps, taps, stride, taps // 2, taps // 2)

    def ours() -> Tensor:
        conv.conv_fp8_forward(x, w, scale, bias, None, y, params, True, 1.0)
        return y

    def check() -> float:
        poison(y)
        sums = exact(x.float(), w.float().permute(0, 1, 3, 2), stride)
        return max_rel_error(ours(), (sums * scale.double() + bias.double()).relu())

    macs = sizes(shape, batch, 1)[1]
    bytes_moved = x.nbytes + w.nbytes + y.nbytes
    baselines = fp16_baselines(x.half(), w.permute(0, 1, 3, 2).half(), bias, stride)
    return Run(ours, check, 5e-3, {"cudnn fp16": baselines["cudnn"]}, bytes_moved, macs)


def stem_fp16(shape: tuple[int, int, int, int, int], batch: int) -> Run:
    """A first layer in float16, from bytes; the baselines scale and cast before."""
    side, inputs, outputs, stride, taps = shape
    x, w = pixels(batch, side, side, inputs), random(taps, taps, inputs, outputs).half()
    bias, out = random(outputs), -(-side // stride)
    y = torch.full((batch, out, out, outputs), float("nan"), dtype=torch.float16, device=DEVICE)
    params = ConvParams(taps, taps, stride, taps // 2, taps // 2)

    def ours() -> Tensor:
        conv.stem_conv_forward(x, w, bias, y, params, True, SCALE)
        return y

    filter, offset = w.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last), bias.half()

    def eager() -> Tensor:
        image = (x.permute(0, 3, 1, 2).float() * SCALE).half()
        return F.relu(F.conv2d(image, filter, offset, stride, taps // 2))

    def check() -> float:
        poison(y)
        return max_rel_error(ours(), (exact((x.float() * SCALE).half(), w, stride) + bias.double()).relu())

    _, macs = sizes(shape, batch, 2)
    bytes_moved = x.nbytes + y.nbytes + w.nbytes
    return Run(ours, check, 2e-3, {"eager": eager}, bytes_moved, macs, eager)


def stem_int8(shape: tuple[int, int, int, int, int], batch: int) -> Run:
    """A first layer in int8, from bytes."""
    side, inputs, outputs, stride, taps = shape
    x, w = pixels(batch, side, side, inputs), small_integers(outputs, taps, taps, inputs)
    scale, bias, out = random(outputs).abs() / 250.0, 20.0 * random(outputs), -(-side // stride)
    y = torch.full((batch, out, out, outputs), 85, dtype=torch.int8, device=DEVICE)
    params, inv_x_scale = ConvParams(taps, taps, stride, taps // 2, taps // 2), 0.4980392  # 127 / 255

    def ours() -> Tensor:
        conv.stem_conv_int8_forward(x, w, scale, bias, y, params, True, inv_x_scale)
        return y

    def check() -> float:
        seen = (x.float() * torch.tensor(inv_x_scale, device=DEVICE)).round()
        poison(y)
        value = fma(exact(seen, w.permute(1, 2, 3, 0), stride).round(), scale, bias).relu()
        return float((value.clamp(-128, 127).round() != ours()).sum())

    return Run(ours, check, 0.0, {}, x.nbytes + y.nbytes + w.nbytes, sizes(shape, batch, 1)[1])


def rotating(side: int, channels: int, batch: int) -> Run:
    """Bytes derotated, scaled and cast; the baselines use grid_sample."""
    x = pixels(batch, side, side, channels)
    angle = random(batch)
    cos, sin = angle.cos(), angle.sin()
    y = torch.full(x.shape, float("nan"), dtype=torch.float16, device=DEVICE)

    def ours() -> Tensor:
        rotate.forward(x, cos, sin, y, SCALE, 0.0, 127.0, False, 0.0)
        return y

    def check() -> float:
        few = slice(0, 64)
        dtype = torch.float16
        poison(y)
        expected = rotate_pixels(x[few].cpu(), cos[few].cpu(), sin[few].cpu(), SCALE, 0.0, False, dtype, 127.0, 0.0)
        return max_rel_error(ours()[few].cpu(), expected)

    def eager() -> Tensor:
        image = x.permute(0, 3, 1, 2).float() * SCALE
        zero = torch.zeros_like(cos)
        matrix = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)
        grid = F.affine_grid(matrix, list(image.shape), align_corners=False)
        return F.grid_sample(image, grid, align_corners=False).half()

    return Run(ours, check, 2e-3, {"eager": eager}, x.nbytes + y.nbytes, 0, eager)


def noise(rows: int, columns: int, name: str) -> Run:
    """Sampling and KL; the baselines draw their own noise."""
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[name]
    mu, logvar = random(rows, columns).to(dtype), random(rows, columns, seed=1).to(dtype)
    z, kl = torch.empty_like(mu), torch.empty(rows, device=DEVICE)
    poison(z, kl)

    def ours() -> Tensor:
        reparameterize.forward(mu, logvar, z, kl, 7, 0)
        return z

    def eager() -> tuple[Tensor, Tensor]:
        sampled = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return sampled, -0.5 * (1 + logvar - mu.square() - logvar.exp()).float().sum(1)

    def check() -> float:
        few = slice(0, 4096)
        expected = reparameterize_op(mu[few].cpu(), logvar[few].cpu(), 7, 0)
        poison(z, kl)
        return max_error(max_rel_error(ours()[few].cpu(), expected[0]), max_rel_error(kl[few].cpu(), expected[1]))

    return Run(ours, check, 2e-3, {"eager": eager}, 3 * mu.nbytes + kl.nbytes, 0, eager)


def avg_pool(batch: int) -> Run:
    """Means by channel."""
    x, y = random(batch, 14, 14, 32).half(), torch.full((batch, 32), float("nan"), device=DEVICE)

    def ours() -> Tensor:
        pool_kernels.forward(x, y, 1.0)
        return y

    def eager() -> Tensor:
        return x.float().mean((1, 2))

    def check() -> float:
        poison(y)
        return max_rel_error(ours(), eager())

    return Run(ours, check, 1e-3, {"eager": eager}, x.nbytes + y.nbytes, 0, eager)


def comparing(batch: int) -> Run:
    """The error of a reconstruction, and the score."""
    decoded, upright = random(batch, 7, 7, 16).half(), random(batch, 28, 28, 1).sigmoid().half()
    score, measure, total = random(batch, 2), random(1), torch.full((batch,), float("nan"), device=DEVICE)

    def ours() -> Tensor:
        error_kernels.forward(decoded, upright, score, measure, total, 4)
        return total

    def eager() -> Tensor:
        picture = F.pixel_shuffle(decoded.permute(0, 3, 1, 2), 4).float().sigmoid().flatten(1)
        seen = upright.float().flatten(1)
        root = torch.linalg.vector_norm(seen - seen.mean(1, keepdim=True), dim=1) + (0.001 * 784) ** 0.5
        error = (torch.linalg.vector_norm(seen - picture, dim=1) / root).square()
        return score[:, 0] + measure * (error - score[:, 1])

    def check() -> float:
        poison(total)
        expected = heads.reconstruction_error(*(tensor.cpu() for tensor in (decoded, upright, score, measure)), 4)
        return max_rel_error(ours().cpu(), expected)

    bytes_moved = decoded.nbytes + upright.nbytes
    return Run(ours, check, 2e-3, {"eager": eager}, bytes_moved, 0, eager)


def orientation(batch: int) -> Run:
    """The orientation encoder's fully connected layer and the decoded angle."""
    model = untrained("small")
    packed = pack(model)
    net = packed.layout
    orientation_encoder = model.orientation
    assert orientation_encoder is not None
    features = random(batch, orientation_encoder.backbone.features).half()
    weights, params = packed.weights.to(DEVICE), packed.params.to(DEVICE)
    logits = torch.full((batch, net.classes), float("nan"), device=DEVICE)
    found = torch.full((batch, heads.ORIENTATION_VALUES), float("nan"), device=DEVICE)

    def ours() -> Tensor:
        head_kernels.orientation_forward(net, features, weights, params, logits, found)
        return found

    on_gpu = orientation_encoder.half().to(DEVICE).requires_grad_(False)

    def eager() -> Any:
        return on_gpu.classifier(features), on_gpu.decode_angle(on_gpu.angle_bins(features))

    def check() -> float:
        expected = heads.orientation_head(features.cpu(), packed.weights, packed.params, to_json(net))
        poison(logits, found)
        ours()
        return max_error(
            max_rel_error(logits.cpu(), expected[0]), max_rel_error(found[:, :2].cpu(), expected[1][:, :2])
        )

    bytes_moved = features.nbytes + 2 * orientation_encoder.backbone.features * (net.classes + net.bins)
    return Run(ours, check, 5e-3, {"eager": eager}, bytes_moved, 0, eager)
