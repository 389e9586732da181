#!/bin/sh
# tests/make_aarch64_root.sh FOLDER: Debian's Python for aarch64, unpacked into a folder (80 MB), for
# VAE_EDGE_AARCH64_ROOT. It needs apt and the network, and changes nothing of the system.
set -eu
[ ! -d "$1" ] || exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial"
touch "$work/status"
cat >"$work/apt.conf" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
Dir::State "$work";
Dir::State::status "$work/status";
Dir::Cache "$work";
APT::Sandbox::User "root";
END
export APT_CONFIG="$work/apt.conf"
apt-get update -qq
apt-get install -y -qq --download-only --no-install-recommends python3-minimal libpython3-stdlib python3-pip-whl libstdc++6 >/dev/null
for package in "$work"/archives/*.deb; do dpkg-deb --extract "$package" "$work/root"; done
mv "$work/root" "$1"
