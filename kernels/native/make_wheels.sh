#!/bin/sh
# Wheels: a pure one, and one for each processor with the native library in it. The library has no kernels of its own (a network file
# brings its machine code) and needs glibc 2.17 and nothing else, so that one wheel serves every Python and every JetPack.
#
#   kernels/native/make_wheels.sh PYTHON FOLDER [x86_64 | aarch64 ...]     default: both
#
# It needs CMake, a C compiler, and for another processor than this one Debian's cross compiler (gcc-aarch64-linux-gnu).
set -eu
python=$1 folder=$2
shift 2
[ $# -gt 0 ] || set -- x86_64 aarch64
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

wheel() { "$python" -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir "$folder" "$root"; }

wheel
for processor in "$@"; do
  if [ "$processor" = "$(uname -m)" ]; then
    set --
  elif [ "$processor" = aarch64 ] && command -v aarch64-linux-gnu-gcc >/dev/null; then
    set -- -DCMAKE_TOOLCHAIN_FILE="$root/kernels/native/aarch64.cmake"
  else
    echo "No wheel for $processor: its cross compiler is missing (for aarch64: apt-get install gcc-aarch64-linux-gnu)." >&2
    exit 2
  fi
  cmake -S "$root" -B "$build/$processor" -DVAE_EDGE_KERNELS=OFF -DVAE_EDGE_PORTABLE=ON "$@" >"$build/log" || { cat "$build/log" >&2; exit 1; }
  cmake --build "$build/$processor" >"$build/log" || { cat "$build/log" >&2; exit 1; }
  VAE_EDGE_WHEEL_LIBRARY=$(readlink -f "$build/$processor/lib/libvae_edge_kernels.so")
  VAE_EDGE_WHEEL_PLATFORM=manylinux_2_17_$processor
  export VAE_EDGE_WHEEL_LIBRARY VAE_EDGE_WHEEL_PLATFORM
  wheel
  unset VAE_EDGE_WHEEL_LIBRARY VAE_EDGE_WHEEL_PLATFORM
done
