#!/bin/sh
# Install the packages that building C++ needs, and tools that are named, where that may be done; otherwise CMake names
# them, or the line below.
set -eu
missing=""
for package in g++ cmake libsentencepiece-dev nlohmann-json3-dev libcli11-dev libcpp-httplib-dev doctest-dev "$@"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"
done
if [ -z "$missing" ]; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # a list of names
    apt-get install -y -qq $missing >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq $missing >/dev/null; } || true
fi
for tool in cmake c++ "$@"; do
    if ! command -v "$tool" >/dev/null; then
        echo "Packages are missing. Run: apt-get install -y$missing" >&2
        exit 1
    fi
done
