"""Fixtures of the doubles' own tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from doubles.cuda_library import CudaDouble
from doubles.device import Device
from doubles.loading import VERSIONS, TensorRTDouble


@pytest.fixture
def device(cuda: CudaDouble) -> Iterator[Device]:
    """The double of the driver with a current context."""
    with cuda.context():
        yield Device(cuda)


@pytest.fixture(params=VERSIONS)
def double(
    request: pytest.FixtureRequest, use_tensorrt: Callable[[str], TensorRTDouble], device: Device
) -> TensorRTDouble:
    """The double of TensorRT, in each version."""
    return use_tensorrt(request.param)
