"""The toolkit's own kernels inside TensorRT's engines.

`kernel_file` reads what `vae_edge_kernels.aot.plugins` compiled for a node. `quick` registers these kernels with
TensorRT 10.13 and later, and 11, as quick deployable plugins: their PTX goes into the engine, which then needs nothing
of this package. `layered` registers them with TensorRT-RTX, as an `IPluginV3` whose machine code goes into the engine;
it is launched from here, so this package is needed where the engine runs.
"""
