#!/usr/bin/env bash
# Everything that needs a CUDA device: its tests, and the figures in benchmarks/results/*-cuda.*.
#
#   benchmarks/gpu.sh [FOLDER]      where the tables go; benchmarks/results by default
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${1:-benchmarks/results}
python=${PYTHON:-python}
"$python" -m pytest -m gpu
"$python" benchmarks/tree.py --full --device cuda --out "$out"
"$python" benchmarks/engine.py --device cuda --sizes B,L,XL --batches 1,8,32,64,128,256 \
    --arrivals 0.7 --out "$out"
"$python" benchmarks/generate.py --device cuda
"$python" benchmarks/training_loop.py --device cuda --sizes B,L --out "$out"
"$python" benchmarks/encoding.py
"$python" benchmarks/study.py --configs training/configs/tinyimagenet50 --device cuda
