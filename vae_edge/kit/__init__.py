"""The kit: a bundle on its way to a device where TensorRT must build, and the engine's way back.

    description  what a kit says of itself, and the held-out images in it
    wheel        a wheel of the running installation
    write        a kit from a bundle, at home
    device       `sh build.sh`: check, build, verify, measure, pack; on the device, with NumPy and TensorRT alone
    measure      accuracy and latency of an engine, as device prints and packs them
    archive      tar.gz files: written the same each time, and unpacked safely
    result       a result into the bundle, at home

What runs on the device is tested against doubles and not verified on hardware.
"""
