# Shared by the scripts; sourced, never run. Sets where things are and how a step is reported.
# shellcheck shell=bash

# Everything that is costly to fetch and belongs to no checkout.
export EDGE_MIN_CACHE="${EDGE_MIN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/edge-min}"
# The C compiler, linker and musl of the static builds.
export ZIG="$EDGE_MIN_CACHE/zig/ziglang/zig"
export PATH="$HOME/.cargo/bin:$PATH"

say() { printf '%s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# The comment block under the first line of a script is its help text.
usage_of() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$1" >&2; }

# Path of cargo-deny, or nothing.
cargo_deny() {
    local found
    found=$(find "$EDGE_MIN_CACHE/cargo-deny" -name cargo-deny -type f 2>/dev/null | head -n 1 || true)
    [ -n "$found" ] || found=$(command -v cargo-deny || true)
    printf '%s' "$found"
}

# make_image DIR NAME [BUSYBOX ARCHITECTURE]: a one-layer image with busybox as an OCI layout, by umoci.
make_image() {
    local layout="$1" name="$2" busybox="${3:-/bin/busybox}" architecture="${4:-amd64}" bundle
    bundle=$(mktemp -d)
    umoci init --layout "$layout"
    umoci new --image "$layout:new"
    umoci unpack --image "$layout:new" "$bundle/b" 2>/dev/null
    mkdir -p "$bundle/b/rootfs/bin" "$bundle/b/rootfs/etc" "$bundle/b/rootfs/tmp"
    cp "$busybox" "$bundle/b/rootfs/bin/busybox"
    local applet
    for applet in sh cat echo sleep ls true false; do
        ln -s busybox "$bundle/b/rootfs/bin/$applet"
    done
    umoci repack --image "$layout:new" "$bundle/b" 2>/dev/null
    umoci config --image "$layout:new" --config.cmd /bin/sh --architecture "$architecture"
    # umoci takes no slash in a tag, so the name is set in the index itself.
    sed -i "s|\"org.opencontainers.image.ref.name\":\"new\"|\"org.opencontainers.image.ref.name\":\"$name\"|" "$layout/index.json"
    rm -rf "$bundle"
}
