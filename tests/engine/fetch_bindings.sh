#!/bin/sh
# Fetch the Python bindings of four TensorRT versions (1 MB each, no libraries) into a folder, for the API-surface tests:
#     tests/engine/fetch_bindings.sh FOLDER [PYTHON]
#     VAE_EDGE_TENSORRT_WHEELS=FOLDER pytest tests/engine/test_tensorrt_api.py tests/engine/test_plugins_quick.py \
#         tests/doubles/test_against_bindings.py
# A version without a wheel for this Python is left out, and its tests are skipped.
set -u
folder=${1:?usage: fetch_bindings.sh FOLDER [PYTHON]}
python=${2:-python3}
mkdir -p "$folder"
for wheel in tensorrt-cu12-bindings==10.3.0 tensorrt-cu13-bindings==10.13.3.9 tensorrt-cu13-bindings==11.4.0.106 \
    tensorrt-rtx-cu13-bindings==1.7.1.116; do
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --dest "$folder" "$wheel" ||
        echo "no wheel of $wheel for $("$python" --version)" >&2
done
ls "$folder"
