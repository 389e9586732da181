"""A TensorRT execution context for one batch size, with its buffers and its CUDA graph. Not verified on hardware."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from vae_edge.engine import cuda
from vae_edge.engine.cuda import CudaContext, CudaError, Resources
from vae_edge.engine.plan import Plan, Tensor, create_context
from vae_edge.errors import BackendError

log = logging.getLogger(__name__)


class BoundContext:
    """An execution context, its buffers and its graph: fill `image`, call `run`, read `outputs`.

    Attributes:
        batch: images.
        source: None if they come from `image`; else device address of the images, 0 for an own buffer at `address`.
        image: pinned uint8 [batch, S, S, C], to be filled before `run`; unused with a source.
        address: where the engine reads images.
        outputs: pinned, in the backend's order, to be read after `run`.
        used_at: when it was used last, by `time.monotonic`.
    """

    def __init__(
        self,
        context: CudaContext,
        plan: Plan,
        tensors: Sequence[Tensor],
        batch: int,
        source: int | None,
        stream: ctypes.c_void_p,
    ) -> None:
        self._cuda = context
        self._plan = plan
        self._stream = stream
        self.batch = batch
        self.source = source
        self.used_at = 0.0
        self._resources = Resources(context)
        self._graphs = Resources(context)
        self._context: Any = None
        self._cache: Any = None  # which must outlive the context
        self._graph: ctypes.c_void_p | None = None
        self._launch, self._wait = context.functions["cuGraphLaunch"], context.functions["cuStreamSynchronize"]
        self._tensors = [(tensor, (batch, *tensor.shape[1:])) for tensor in tensors]

        # One block for the input and one for all outputs, each output at an aligned place in it.
        self._input_bytes = int(np.prod(self._tensors[0][1]))
        self._places, end = [], 0
        for tensor, shape in self._tensors[1:]:
            self._places.append(end)
            size = int(np.prod(shape)) * np.dtype(tensor.dtype).itemsize
            end += -(-size // cuda.ALIGNMENT) * cuda.ALIGNMENT
        self._output_bytes = end

    def prepare(self, cache: Any, scratch: int, scratch_size: int) -> None:
        """Make context and buffers, and run once: that allocates and loads what a capture must not.

        Raises:
            BackendError: TensorRT refuses something.
            CudaError: the driver does.
        """
        self._allocate()
        plan, context = self._plan, create_context(self._plan, cache)
        self._context, self._cache = context, cache
        if scratch_size:
            context.set_device_memory(scratch, scratch_size)
        stream = self._stream.value or 0
        several = plan.engine.num_optimization_profiles > 1  # then a context may have none until it is told
        if several and not context.set_optimization_profile_async(plan.profile, stream):
            self._refuse(f"does not take the optimization profile {plan.profile} of {plan.name}")
        self._cuda.call("cuStreamSynchronize", self._stream)
        (image, shape), *outputs = self._tensors
        if not context.set_input_shape(image.name, shape):
            smallest, largest = plan.batch
            self._refuse(f"does not take a batch of {self.batch} images (the profile is {smallest} to {largest})")
        missing = context.infer_shapes()
        if missing:
            self._refuse(f"wants the shapes of {', '.join(missing)}")
        for tensor, expected in outputs:
            found = tuple(int(side) for side in context.get_tensor_shape(tensor.name))
            if found != expected:
                self._refuse(f"gives {tensor.name} the shape {list(found)} where {list(expected)} was expected")
        addresses = {image.name: self.address, **dict(zip((t.name for t, _ in outputs), self._addresses, strict=True))}
        for name in (tensor.name for tensor in plan.tensors if tensor.name not in addresses):
            addresses[name] = self._spare(name)  # an output that nobody wants needs a place too
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                self._refuse(f"does not take the address of {name}")
        self._enqueue()
        self._cuda.call("cuStreamSynchronize", self._stream)

    def _allocate(self) -> None:
        resources, mapped = self._resources, self._cuda.integrated
        self.image = resources.pinned_memory(self._input_bytes if self.source is None else 0)
        block = resources.pinned_memory(self._output_bytes)
        self._host_in, self._host_out = self.image.ctypes.data, block.ctypes.data
        if self.source:
            self.address = self.source
        elif mapped and self.source is None:
            self.address = resources.device_address(self.image)
        else:
            self.address = resources.device_memory(self._input_bytes)
        start = resources.device_address(block) if mapped else resources.device_memory(self._output_bytes)
        self._copies_in, self._copies_out = self.source is None and not mapped, not mapped
        self._start = start
        self._addresses = [start + place for place in self._places]
        if self.source is None:
            self.image = self.image.reshape(self._tensors[0][1])
        self.outputs = tuple(
            np.frombuffer(block.data, tensor.dtype, int(np.prod(shape)), place).reshape(shape)
            for (tensor, shape), place in zip(self._tensors[1:], self._places, strict=True)
        )

    def _spare(self, name: str) -> int:
        shape = [int(side) for side in self._context.get_tensor_shape(name)]
        itemsize = self._plan.engine.get_tensor_bytes_per_component(name)
        return self._resources.device_memory(int(np.prod(shape)) * max(1, int(itemsize)))

    def _enqueue(self) -> None:
        """Put the copies and the engine on the stream."""
        if self._copies_in:
            self._cuda.call("cuMemcpyHtoDAsync_v2", self.address, self._host_in, self._input_bytes, self._stream)
        if not self._context.execute_async_v3(self._stream.value or 0):
            self._refuse(f"refuses to run a batch of {self.batch} images")
        if self._copies_out:
            self._cuda.call("cuMemcpyDtoHAsync_v2", self._host_out, self._start, self._output_bytes, self._stream)

    def capture(self) -> bool:
        """Make the graph. Returns False where the engine cannot be captured, as with a DLA: it runs without then."""
        try:
            self._graph = self._graphs.capture(self._stream, self._enqueue)
            self.run()
        except CudaError as error:
            if error.is_lost or error.is_out_of_memory:
                raise
            reason = str(error)
        except BackendError as error:
            reason = str(error)
        else:
            return True
        self._graph = None
        log.info("%s runs without a CUDA graph: %s", self._plan.name, reason)
        return False

    def run(self) -> None:
        """Run what is in `image` or at the source, and wait for the outputs.

        Raises:
            CudaError, BackendError: it fails.
        """
        stream = self._stream
        if self._graph is None:
            self._enqueue()
        else:
            code = self._launch(self._graph, stream)
            if code:
                raise cuda.error(self._cuda.functions, "cuGraphLaunch", code)
        code = self._wait(stream)
        if code:
            raise cuda.error(self._cuda.functions, "cuStreamSynchronize", code)

    def close(self) -> None:
        """Release graph, context and buffers, in this order, once nothing on the stream uses them any more."""
        try:
            with self._cuda.current():  # TensorRT releases what it has on the GPU that is current
                code = self._wait(self._stream) if self._context is not None else 0
                if code:
                    log.info("%s", cuda.error(self._cuda.functions, "cuStreamSynchronize", code))
                self._graphs.close()
                self._context = None
        except CudaError as lost:
            log.info("%s", lost)
        self._graph = self._context = self._cache = None
        self._resources.close()

    def _refuse(self, what: str) -> NoReturn:
        raise BackendError(self._plan.sentence(what))
