#!/usr/bin/env bash
# Checks the four models on the GPU of a machine without a package registry, in under 10 minutes:
#
#     benchmarks/gpu_check.sh BUNDLE [ARGUMENTS of benchmarks.gpu_check]
#
# BUNDLE is the folder that benchmarks/gpu_bundle.sh has packed; without its archive onnx-cuda,
# what runs on onnxruntime is checked on the CPU and reported as failed. PYTHON (python3) has
# torch. It is unpacked once, into SITE, /tmp/speechgraph-site if unset.
set -euo pipefail
bundle=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
site=${SITE:-/tmp/speechgraph-site}
for archive in base onnx-cuda; do
    parts=("$bundle/$archive".tar.xz.*)
    if [ -e "${parts[0]}" ] && [ ! -e "$site/.$archive" ]; then
        mkdir -p "$site"
        cat "${parts[@]}" | "$python" -c '
import sys, tarfile
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|xz") as archive:
    archive.extractall(sys.argv[1], filter="tar")' "$site"
        # Ray ends a node whose processes take long to import.
        "$python" -m compileall -q -j 0 "$site" || true
        touch "$site/.$archive"
    fi
done
export PYTHONPATH=$PWD:$site

# CTranslate2 asks for cuBLAS 12. For a measurement the cuBLAS of torch does, under that name.
cublas=$("$python" -c '
import importlib.util, pathlib
folders = getattr(importlib.util.find_spec("nvidia"), "submodule_search_locations", None) or ()
found = [p for f in folders for p in pathlib.Path(f).glob("*/lib/libcublas.so.13")]
print(found[0] if found else "")')
if [ -n "$cublas" ]; then
    mkdir -p "$site/.links"
    ln -sf "$cublas" "$site/.links/libcublas.so.12"
    LD_LIBRARY_PATH=$site/.links:$(dirname "$cublas")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export LD_LIBRARY_PATH
fi
exec "$python" -m benchmarks.gpu_check "$@"
