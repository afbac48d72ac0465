#!/usr/bin/env bash
# Packs what a GPU machine without a package registry lacks to run this project:
#
#     benchmarks/gpu_bundle.sh FOLDER [ARCHITECTURE]
#
# The machine has Linux on x86-64, Python 3.12, and torch with the libraries of CUDA 13 that
# requirements-gpu.lock has. Everything else comes in the versions of that lock. FOLDER gets
# base.tar.xz.NN and onnx-cuda.tar.xz.NN, in parts of PART (60M); benchmarks/gpu_check.sh unpacks
# them. The second archive is CUDA's part of onnxruntime, with the code of every architecture, or
# of one (90 is H100 and H200). cuBLAS 12 stays out: it is larger than all the rest, and the
# check gives CTranslate2 the cuBLAS 13 of torch under its name.
#
# PRESENT names the packages that the machine has, beside torch, in any version that will do.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mkdir -p "$1" && cd "$1" && pwd)
architecture=${2:-}
present=${PRESENT:-numpy scipy pandas scikit-learn joblib threadpoolctl matplotlib contourpy \
    kiwisolver fonttools pillow sympy mpmath networkx onnx ml-dtypes}
export PATH=$PWD/.venv/bin:$PATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
site=$work/site
target=(--python-version 3.12 --python-platform x86_64-manylinux_2_28)

uv pip compile --quiet "${target[@]}" --extra all --extra gpu --generate-hashes --no-annotate \
    --no-header --overrides requirements-gpu.overrides --constraint requirements-gpu.lock \
    pyproject.toml --output-file "$work/all.txt"
awk -v present="torch torchaudio triton $present" '
    BEGIN { split(present, names, " "); for (i in names) left_out[names[i] "=="] }
    /^[^ ]/ { split($1, name, "=="); keep = !(name[1] "==" in left_out) && $1 !~ /^(nvidia|cuda)-/ }
    /^nvidia-ml-py==/ { keep = 1 }
    keep' "$work/all.txt" >"$work/lacking.txt"
# Copies: a hard link would carry what is changed below into the cache of uv.
uv pip install --quiet "${target[@]}" --target "$site" --link-mode copy --no-deps \
    --only-binary :all: --requirements "$work/lacking.txt"
# Its metadata: the code is that of the checkout.
uv pip install --quiet "${target[@]}" --target "$site" --no-deps --editable .

rm -rf "$site"/ray/{rllib,jars,cpp} "$site"/bin
find "$site" -name tests -type d -prune -exec rm -rf {} +
mkdir -p "$work/onnx/onnxruntime/capi"
rm -f "$site"/onnxruntime/capi/libonnxruntime{.so*,_providers_tensorrt.so}
provider=onnxruntime/capi/libonnxruntime_providers_cuda.so
mv "$site/$provider" "$work/onnx/$provider"
if [ -n "$architecture" ]; then
    python -m benchmarks.trim_fatbin "$work/onnx/$provider" "$architecture"
fi

rm -f "$folder"/{base,onnx-cuda}.tar.xz.*
pack() { tar -C "$1" -c . | xz -T0 "-${XZ_LEVEL:-9}" | split -d -b "${PART:-60M}" - "$folder/$2.tar.xz."; }
pack "$site" base
pack "$work/onnx" onnx-cuda
du -ch --apparent-size "$folder"/*
