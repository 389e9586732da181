"""TensorRT engines: one adapter over TensorRT 10.3, 10.13+, 11 and RTX; building; reading what was built.

    build       ONNX to engine: which TensorRT, a worker process, an engine into a bundle
    worker      the process in which TensorRT builds, and how it is run
    builder     one build in that process: parse, check, configure, build, verify
    tensorrt    the TensorRT that is installed, a build's configuration, messages as advice
    gpus        which GPUs the driver sees (ctypes; nothing else needed); architectures, and what can be built for which
    devices     devices by name, as data
    inspection  an engine's header and the precision of its layers

Importing this package imports neither torch, nor triton, nor a TensorRT module.
"""
