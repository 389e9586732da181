"""Doubles of the CUDA driver and of TensorRT: an engine that runs on the CPU, and refuses what the real ones refuse.

Nothing here has run on hardware. The double of TensorRT offers nothing that the real bindings of its version lack
(`test_against_bindings.py`), and enforces what they are documented to enforce. What the real TensorRT-RTX answers
without a GPU, it answers too (`test_against_rtx.py`). One thing differs: the `memoryview` of an `IHostMemory` has the
format "B" here and "f" there, so take `bytes()` or `nbytes`.

For tests, by the fixtures of `tests/conftest.py`:

    def test_it_answers(cuda, use_tensorrt, tmp_path, monkeypatch):
        monkeypatch.setattr("vae_edge.engine.cuda.LIBRARY", str(cuda.library))
        double = use_tensorrt("10.3")            # "10.3", "10.13", "11.4" or "rtx": `import tensorrt` gives it now
        plan = double.make_engine(onnx_bytes, batch=(1, 8, 64), capabilities=(87,))
        ...                                      # the code under test
        assert double.faults() == [] and cuda.faults() == [] and cuda.held() == 0

`cuda` (`cuda_library.CudaDouble`), a libcuda.so.1 whose device memory is host memory (`cuda/double.h` has all of it):
    library, folder          the file for this process, by its absolute path; the folder of `libcuda.so.1` for others
    count("cuMemAlloc_v2")   how often a function was called; also "device_allocations", "pageable_copies", ...
    held()                   allocations, streams, events, graphs and execs that were not given back
    fail("cuMemAlloc_v2", nth=3, code=2)    the third call from now on fails; nth=0: every call; code=0 takes it back
    lose_device(719)         from now on every call that works with the device fails
    faults()                 misuse that no return code shows
    context(ordinal)         with-block: the primary context is current (tests that have no CUDA layer of their own)
    reset()                  as freshly loaded (the fixture does it before and after each test)
    Devices come from the environment: DOUBLE_CC=86, DOUBLE_INTEGRATED=0, DOUBLE_DEVICES=2, DOUBLE_NAME,
    DOUBLE_MULTIPROCESSORS, DOUBLE_MEMORY_BYTES, DOUBLE_DRIVER_VERSION=12060 (by `monkeypatch.setenv`). The default is
    an Orin: capability 8.7, integrated.

`emulated_gpu.EmulatedGpu`, a GPU for the double of the driver: it executes what is launched, by the emulator of
`vae_edge_kernels.emulator`. The native library gives real answers on it, of about a second an image
(`tests/runtime/test_native_emulated.py`). The emulator executes PTX, which no product's file has:
    with keep_ptx(folder): ...    what is compiled meanwhile in this process leaves its PTX in the folder
    gpu = EmulatedGpu(folder, open_cuda_double("libcuda.so.1"))    in the process that has the double
    gpu.launches                  how many were executed, by kernel, architecture and grid
    gpu.max_programs = 1          launches of more programs do nothing: for the warm-up of 200 blank images
    why_not()                     a reason to skip where Triton is missing or too old
    What is wrong (bounds, unwritten bytes, races, unknown PTX) fails the context with 700 or 719; faults() has the
    sentence. A kernel by hand takes its place: double_run_with.

`use_tensorrt(version)` (`loading.TensorRTDouble`):
    module, kind, version    what `import tensorrt` gives, "tensorrt" or "tensorrt_rtx", "10.3.0"
    make_engine(model, batch=, profiles=, capabilities=, version=, plants=, **options) -> bytes
    plant(engine, kind) -> bytes    "weight", "nearest", "swapped_outputs", "reversed_batch", "color_order", "fp32",
                             "fp16": a whole engine that gives wrong answers
    fail("create_execution_context", nth=1)    also execute_async_v3, set_input_shape, deserialize_cuda_engine, ...
    faults()                 what was done wrong: use of the default stream, two threads in a context, stale graphs, ...
    state.free_engines       True: an engine costs nothing after its first run (for our own overhead), or what
                             state.engine_cost_us(batch) says
    state.lazy_calls         of RTX with LAZY specialization: how many first runs differ in the last bits
    state.counts             calls by method; "jit_compilations" of RTX
    state.plants, state.nearest_grid_samples, state.build_seconds, state.dla_cores    of what the builder makes

Other processes: `loading.write_package(folder, version)` makes a folder for PYTHONPATH that holds a package `tensorrt`
or `tensorrt_rtx`; `loading.process_environment(folder, cuda.folder, DOUBLE_CC=86)` is the whole environment.
In such a process `doubles.loading.load_tensorrt(version)` is the same double, and settings come from the environment:
DOUBLE_FAIL="cuMemAlloc_v2:3:2" (function, call, code), DOUBLE_TENSORRT_FAIL="build_serialized_network:1" (method,
call), DOUBLE_TENSORRT_PLANTS="nearest" (what the builder makes), DOUBLE_TENSORRT_FAULTS=FILE (its faults go there).
"""
