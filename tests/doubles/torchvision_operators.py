"""A torchvision that is built for CUDA's PyTorch, beside a PyTorch without CUDA: PyPI has no other one for Linux.

Its Python part works there once the operators that it registers shapes for are declared. None of them is called.
"""

from __future__ import annotations

import sys

import torch

SCHEMAS = [f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")]
_declared: list[torch.library.Library] = []


def make_torchvision_importable() -> None:
    """Declare the operators where torchvision is installed and cannot be imported for want of them."""
    try:
        import torchvision
    except ImportError:
        return  # it is not installed
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("torchvision", "timm")]:
            del sys.modules[name]
        _declared.append(torch.library.Library("torchvision", "FRAGMENT"))
        for schema in SCHEMAS:
            _declared[-1].define(schema)
        import torchvision  # noqa: F401
