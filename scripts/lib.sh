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
