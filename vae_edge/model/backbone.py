"""Pretrained networks of timm and torchvision as encoders: their architecture, their feature maps, their weights.

The architecture comes by its name from the library and never needs the network. Weights come from a file, or from the
library, which downloads them. A checkpoint holds all weights, so that reading one downloads nothing.
"""

from __future__ import annotations

import copy
import io
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, TypeVar

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vae_edge.errors import ConfigError
from vae_edge.files import read_bytes
from vae_edge.model.config import ModelConfig
from vae_edge.spec import MAX_CHECKPOINT_BYTES, size_text

log = logging.getLogger(__name__)

MAX_PARAMETERS = 200_000_000  # of a pretrained network
SCORE_REDUCTIONS = (16, 8, 32)  # the score averages the stages that are smaller than the image by these factors,
MAX_SCORE_CHANNELS = 1024  # in this order, up to so many channels in all: its fit takes the third power of their number
MAX_CLASSIFIER_LAYERS = 4  # with parameters, behind the last feature maps
TRACED_PIXELS = 224  # side of the image by which the stages of a torchvision network are found
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COUNTERS = "num_batches_tracked"  # of batch normalization; earlier versions of PyTorch wrote none


class PretrainedBackbone(nn.Module):
    """A network of `ModelConfig.backbone` without its classifier: image [N, channels, H, W] in [0, 1] to features.

    Grey images become three equal channels. The network's own normalization (mean and standard deviation) is inside.
    In training its batch normalization keeps the running statistics that it came with: a batch has few images, and
    with rotation the weights see images both as they came and derotated.

    Attributes:
        size: height and width of the images.
        channels: C of the last feature maps; `features`: the same, since they are averaged.
        last_size: rows and columns of the last feature maps.
        map_channels: M, of the stages that the anomaly score averages.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.backbone is not None
        self.name, self.size = config.backbone, (config.height, config.width)
        self.library = self.name.partition("/")[0]
        complete = create_network(self.name)
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in normalization(self.name, complete))
        self.register_buffer("scale", 1.0 / std)
        self.register_buffer("offset", -mean / std)
        if self.library == "timm":
            self.network, self.stages = complete, _score_stages(self.name, complete)
        else:
            self.network, self.stages = _trace(self.name, complete), []

        image = torch.zeros(1, config.channels, config.height, config.width)
        last, maps = self._dry_run(image)
        if self.library == "timm":
            with torch.enable_grad():
                _drop_unused(self.network, last.sum() + maps.sum())
            self._dry_run(image)
        self.features = self.channels = last.shape[1]
        self.last_size = (last.shape[2], last.shape[3])
        self.map_channels = maps.shape[1]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, C], averaged over the pixels, and the means [N, M, 1, 1] of the score's stages."""
        last, maps = self.feature_maps(image)
        return last.mean((2, 3)), maps

    def feature_maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The last feature maps [N, C, h, w], and the means [N, M, 1, 1] of the score's stages over their pixels."""
        if image.shape[1] == 1:
            image = image.expand(-1, 3, -1, -1)
        x = image * self.scale + self.offset
        if self.training:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.library == "timm":
            forward: Any = self.network.forward_intermediates
            last, stages = forward(x, indices=self.stages)
        else:
            last, stages = self.network(x)
        return last, torch.cat([maps.mean((2, 3), keepdim=True) for maps in stages], 1)

    def train(self, mode: bool = True) -> PretrainedBackbone:
        """Training mode, but for batch normalization."""
        super().train(mode)
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def _dry_run(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The feature maps of an image of zeros, with gradients.

        Raises:
            ConfigError: the network does not take such an image, or gives no feature maps.
        """
        self.eval()
        size = size_text((image.shape[2], image.shape[3]))
        try:
            with torch.enable_grad():
                last, maps = self.feature_maps(image)
        except (RuntimeError, ValueError, AssertionError, TypeError, IndexError, AttributeError) as error:
            raise ConfigError(
                f"the backbone {self.name} does not take images of {size} ({error}): choose another --size, or a "
                "convolutional network of any size"
            ) from error
        for found in (last, maps):
            if found.ndim != 4 or 0 in found.shape:
                raise ConfigError(
                    f"the backbone {self.name} gives features of shape {list(found.shape)} for an image of {size}; "
                    "expected feature maps [N, C, h, w], as convolutional networks give them"
                )
        self.train()
        return last, maps


# The architecture


def create_network(name: str, pretrained: bool = False) -> nn.Module:
    """The network `timm/MODEL` or `torchvision/MODEL`, with its classifier.

    Args:
        name: as `ModelConfig.backbone`.
        pretrained: with the library's own weights, which it downloads, instead of random ones.

    Raises:
        ConfigError: the library is not installed or does not know the name, the network is too large, or its weights
            cannot be downloaded.
    """
    library, _, model = name.partition("/")
    package = import_library(library)
    try:
        if pretrained:
            network = (
                package.create_model(model, pretrained=True)
                if library == "timm"
                else package.models.get_model(model, weights="DEFAULT")
            )
        else:
            with suppress(NotImplementedError), torch.device("meta"):  # some networks compute while they are built
                _check_size(name, _create(package, library, model))
            network = _create(package, library, model)
    except ConfigError:
        raise
    except Exception as error:  # of the library, of its download, or of the file that it got
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if pretrained:
            raise ConfigError(
                f"{library} could not load its weights of {model} ({said}): give a file of weights with "
                "--backbone-weights FILE"
            ) from error
        raise ConfigError(
            f"{library} {package.__version__} cannot build the backbone {model} ({said}): expected the name of one of "
            "its models"
        ) from error
    return network


def _create(package: Any, library: str, model: str) -> nn.Module:
    if library == "timm":
        return package.create_model(model, pretrained=False)
    return package.models.get_model(model, weights=None)


def _check_size(name: str, network: nn.Module) -> None:
    count = sum(parameter.numel() for parameter in network.parameters())
    if count > MAX_PARAMETERS:
        raise ConfigError(f"the backbone {name} has {count:,} parameters; at most {MAX_PARAMETERS:,} are taken")


def import_library(library: str) -> Any:
    """The package timm or torchvision.

    Raises:
        ConfigError: it is not installed, or does not fit the installed PyTorch.
    """
    try:
        return import_module(library)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"a backbone of {library} needs the package {error.name}, which is not installed: "
            "pip install 'vae-edge[backbone]'"
        ) from error
    except Exception as error:  # torchvision checks PyTorch while it is imported, with errors of many kinds
        raise ConfigError(
            f"{library} cannot be imported ({error}): install a torchvision that fits PyTorch {torch.__version__}, "
            "from the same package index"
        ) from error


def normalization(name: str, network: nn.Module) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of each channel that the pretrained network expects, for images in [0, 1]."""
    library, _, model = name.partition("/")
    if library == "timm":
        given: Any = network.pretrained_cfg
        return tuple(given.get("mean") or IMAGENET_MEAN), tuple(given.get("std") or IMAGENET_STD)
    weights = list(import_library(library).models.get_model_weights(model))
    if not weights:
        return IMAGENET_MEAN, IMAGENET_STD
    transforms = weights[0].DEFAULT.transforms()
    return tuple(transforms.mean), tuple(transforms.std)


def _score_stages(name: str, network: nn.Module) -> list[int]:
    """Indices of a timm network's stages that the score averages."""
    if not hasattr(network, "forward_intermediates") or not hasattr(network, "feature_info"):
        raise ConfigError(f"the backbone {name} cannot give its feature maps in timm: choose another one")
    stages: Any = network.feature_info
    last = {int(stage["reduction"]): (k, int(stage["num_chs"])) for k, stage in enumerate(stages)}
    return sorted(_choose(last))


T = TypeVar("T")


def _choose(stages: Mapping[int, tuple[T, int]]) -> list[T]:
    """Of the stages (what, channels), by how much smaller than the image they are, those that the score averages; where
    there is none of these sizes, the last one."""
    chosen: list[T] = []
    channels = 0
    for reduction in SCORE_REDUCTIONS:
        if reduction in stages and (not chosen or channels + stages[reduction][1] <= MAX_SCORE_CHANNELS):
            chosen.append(stages[reduction][0])
            channels += stages[reduction][1]
    return chosen or [list(stages.values())[-1][0]]


def _drop_unused(network: nn.Module, used: Tensor) -> None:
    """Replace the modules whose parameters do not lead to `used`, such as a classifier, by the identity."""
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(used, parameters, allow_unused=True)
    reached = {id(p) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}

    def drop(module: nn.Module) -> None:
        for name, child in module.named_children():
            own = list(child.parameters())
            if own and not any(id(parameter) in reached for parameter in own):
                setattr(module, name, nn.Identity())
            else:
                drop(child)

    drop(network)


def _trace(name: str, network: nn.Module) -> fx.GraphModule:
    """A torchvision network as a graph from images to its last feature maps and those of the score's stages.

    The last ones are those before the pooling that leaves one pixel: of a larger image, the last of more than one.
    """
    try:
        traced = fx.symbolic_trace(network.eval())
        image = torch.zeros(1, 3, TRACED_PIXELS, TRACED_PIXELS)
        recorder = _ShapeRecorder(traced)
        with torch.no_grad():
            recorder.run(image)
    except Exception as error:  # a network with branches that depend on values, or of fixed sizes
        raise ConfigError(f"the backbone {name} cannot be cut into stages ({error}): choose another one") from error
    modules = dict(traced.named_modules())
    stages = [
        (node, TRACED_PIXELS // shape[2], shape[1])
        for node, shape in recorder.shapes.items()
        if len(shape) == 4 and shape[2] > 1 and node.op != "placeholder"
        if not (node.op == "call_module" and isinstance(modules[str(node.target)], nn.AdaptiveAvgPool2d))
    ]
    if not stages:
        raise ConfigError(f"the backbone {name} gives no feature maps [N, C, h, w]: choose a convolutional network")
    last = stages[-1][0]
    nodes = list(traced.graph.nodes)
    behind = [n for n in nodes[nodes.index(last) + 1 :] if n.op == "call_module" and _has_parameters(modules, n)]
    if len(behind) > MAX_CLASSIFIER_LAYERS:
        raise ConfigError(
            f"the backbone {name} has {len(behind)} layers behind its last feature maps [N, C, h, w]: choose a "
            "convolutional network"
        )
    maps = _choose({factor: (node, channels) for node, factor, channels in stages})
    for node in nodes:
        if node.op == "output":
            node.args = ((last, tuple(maps)),)
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _has_parameters(modules: Mapping[str, nn.Module], node: fx.Node) -> bool:
    return any(True for _ in modules[str(node.target)].parameters())


class _ShapeRecorder(fx.Interpreter):
    """Runs a graph, and keeps the shape of each node's tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """As the interpreter's."""
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
        return value


# Batch normalization


@torch.no_grad()
def fold_backbone_batchnorm(backbone: PretrainedBackbone) -> None:
    """Fold each batch normalization that follows a convolution into it, in place, for inference.

    The pairs are found by running an image: a normalization whose input is a convolution's output. Folding is done in
    float64. A layer of timm that also activates (BatchNormAct2d) keeps its activation. A network that then computes
    something else, since it also uses a convolution's output otherwise, is left as it was.
    """
    backbone.eval()
    image = torch.rand(1, 3, *backbone.size, generator=torch.Generator().manual_seed(0))
    original = backbone.network
    backbone.network = copy.deepcopy(original)
    _fold(backbone, image)
    after = backbone.feature_maps(image)
    folded, backbone.network = backbone.network, original
    before = backbone.feature_maps(image)
    if all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max())) for a, b in zip(after, before, strict=True)
    ):
        backbone.network = folded


def _fold(backbone: PretrainedBackbone, image: Tensor) -> None:
    made: list[tuple[Tensor, nn.Conv2d]] = []  # the outputs are kept, so that no other one gets their identity
    pairs: dict[nn.BatchNorm2d, nn.Conv2d] = {}

    def after_conv(module: nn.Module, inputs: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        made.append((output, module))

    def before_norm(module: nn.Module, inputs: Any) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        for output, conv in made:
            if output is inputs[0]:
                pairs[module] = conv

    handles = []
    for module in backbone.network.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after_conv))
        elif isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(before_norm))
    try:
        backbone.feature_maps(image)
    finally:
        for handle in handles:
            handle.remove()

    once = {norm: conv for norm, conv in pairs.items() if list(pairs.values()).count(conv) == 1}
    for norm, conv in once.items():
        assert norm.running_mean is not None and norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            conv.weight.double(), None if conv.bias is None else conv.bias.double(), norm.running_mean.double(),
            norm.running_var.double(), norm.eps, norm.weight.double(), norm.bias.double(),
        )  # fmt: skip
        conv.weight = nn.Parameter(weight.float(), requires_grad=False)
        conv.bias = nn.Parameter(bias.float(), requires_grad=False)

    def replace(module: nn.Module) -> None:
        for name, child in module.named_children():
            if child in once:
                rest = [
                    part for part in (getattr(child, "drop", None), getattr(child, "act", None)) if part is not None
                ]
                setattr(module, name, nn.Sequential(*rest) if rest else nn.Identity())
            else:
                replace(child)

    replace(backbone.network)


# The weights


def load_pretrained(backbone: PretrainedBackbone, weights: str | os.PathLike[str] | None) -> None:
    """Put pretrained weights into a backbone, and log how they were matched.

    Args:
        weights: a file (`read_weights`); None: the library's own, which it downloads.

    Raises:
        ConfigError: they do not fit, or cannot be read or downloaded.
    """
    complete = create_network(backbone.name, pretrained=weights is None)
    if weights is None:
        given, how = complete.state_dict(), f"the weights of {backbone.library}"
    else:
        own = backbone.network.state_dict()
        given, how = match_weights(complete.state_dict(), read_weights(weights), weights, own)
    backbone.network.load_state_dict({name: given.get(name, t) for name, t in backbone.network.state_dict().items()})
    log.info("%s begins with %s", backbone.name, how)


def check_pretrained(config: ModelConfig, weights: str | os.PathLike[str] | None) -> None:
    """Refuse a backbone that is unknown, and a file of weights that does not fit it, before the images are read.

    Raises:
        ConfigError: as `PretrainedBackbone` and `load_pretrained`. Nothing is downloaded.
    """
    backbone = PretrainedBackbone(config)
    if weights is not None:
        complete = create_network(backbone.name).state_dict()
        match_weights(complete, read_weights(weights), weights, backbone.network.state_dict())


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a PyTorch state dict, in the file's order. Nothing is unpickled but
    tensors (`weights_only`).

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        content = read_bytes(path, MAX_CHECKPOINT_BYTES)
        if content[8:9] == b"{" and content[:2] != b"PK":
            found: Any = load_safetensors(content)
        else:
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ConfigError(f"the file of weights {path} is missing") from error
    except Exception as error:  # PyTorch and safetensors raise many kinds for damaged files
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError(f"{path} is no file of weights (safetensors, or a PyTorch state dict): {said}") from error
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise ConfigError(
            f"{path} holds no state dict: expected tensors by name, as torch.save(model.state_dict()) has"
        )
    return dict(found)


def match_weights(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor], path: str | os.PathLike[str], needed: Mapping[str, Any]
) -> tuple[dict[str, Tensor], str]:
    """The given tensors by the network's names, and a sentence on how they were matched.

    By name; or, where names differ, by order, if number, kinds (the last part of the name) and shapes all agree.
    Of the tensors that are not needed (the classifier's) none must be there.

    Args:
        expected: the state dict of the complete network.
        given: what the file holds.
        path: of the file, for messages.
        needed: the names of the network without its classifier.

    Raises:
        ConfigError: they do not fit, or are not finite.
    """
    wanted = [name for name in needed if not name.endswith(COUNTERS)]
    missing = [name for name in wanted if name not in given]
    if not missing:
        wrong = next((name for name in wanted if given[name].shape != expected[name].shape), None)
        if wrong is not None:
            raise ConfigError(
                f"{path} does not fit the backbone: {wrong} should be {list(expected[wrong].shape)}, and is "
                f"{list(given[wrong].shape)}"
            )
        found, how = {name: given[name] for name in wanted}, f"the weights of {path}, matched by name"
    else:
        ours, theirs = ([n for n in names if not n.endswith(COUNTERS)] for names in (expected, given))
        if [_form(expected, n) for n in ours] != [_form(given, n) for n in theirs]:
            raise ConfigError(_misfit(path, expected, given, ours, theirs, missing))
        found = {name: given[other] for name, other in zip(ours, theirs, strict=True) if name in needed}
        how = (
            f"the weights of {path}, matched by order: the names differ ({theirs[0]} for {ours[0]}), but all "
            f"{len(ours)} tensors have the kinds and shapes that are expected"
        )
    odd = next((name for name, tensor in found.items() if not torch.isfinite(tensor.float()).all()), None)
    if odd is not None:
        raise ConfigError(f"{path} is damaged: its weights for {odd} hold values that are not finite numbers")
    return found, how


def _form(tensors: Mapping[str, Tensor], name: str) -> tuple[str, tuple[int, ...]]:
    return name.rpartition(".")[2], tuple(tensors[name].shape)


def _misfit(
    path: str | os.PathLike[str],
    expected: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    ours: Sequence[str],
    theirs: Sequence[str],
    missing: Sequence[str],
) -> str:
    """Why weights fit neither by name nor by order."""
    place = next(
        (k for k, (a, b) in enumerate(zip(ours, theirs, strict=False)) if _form(expected, a) != _form(given, b)), None
    )
    if place is None:
        why = f"{len(ours)} tensors are expected, {len(theirs)} came"
    else:
        a, b = ours[place], theirs[place]
        why = (
            f"tensor {place + 1} of {len(ours)} should be {a} {list(expected[a].shape)}, and is {b} "
            f"{list(given[b].shape)}"
        )
    return f"{path} does not fit the backbone: it has no {missing[0]}, and by order {why}"
