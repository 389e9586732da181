"""The TensorRT family: one adapter over TensorRT 10.3, 10.13+, 11 and RTX; building engines; reading what was built.

    cuda     which GPUs the driver sees (ctypes; nothing else needed)
    targets  names of architectures, and what can be built for which
    adapter  the one place that imports a TensorRT module; asks it what it has
    messages what TensorRT says, as sentences
    layers   which precision each layer of an engine really runs in
    header   a TensorRT-RTX engine's header, read without a driver
    settings what a build is asked to do
    choosing which TensorRT builds, and for what
    building one build, start to end, in the calling process (interface: whether the ONNX file is ours;
             sampling: whether the parser read its GridSample right)
    worker   the process in which TensorRT builds (process: running it)
    build    ONNX to engine, and an engine into a bundle

Nothing here imports torch, triton, or a TensorRT module when it is imported.
"""
