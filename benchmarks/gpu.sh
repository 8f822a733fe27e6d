#!/usr/bin/env bash
# What needs a CUDA device, in legs that fit into a quarter of an hour, the most valuable first:
#
#   leg         s    what
#   tests       180  the tests that are marked gpu
#   engine-l    120  GPT-L in the engine, batches 1 to 128
#   engine-xl   120  GPT-XL in the engine, batches 8 and 64
#   tree        120  the tree's builder, up to 262,144 codes
#   training    150  GPT-L at the shipped batch: images/s, MFU, memory
#   swap         90  a worker that changes its model for a larger one and back
#   rendering    45  the shipped model with VQ decoding, and PNG
#
#   benchmarks/gpu.sh                        all of them, in this order
#   benchmarks/gpu.sh engine-xl swap         these
#   benchmarks/gpu.sh full                   by name alone, for hours: every table, and the study
#   DEVICE=cpu QUICK=1 benchmarks/gpu.sh     a rehearsal: every leg at toy size, in two minutes
#
# The seconds are what a leg should take on an H200; a program of it is ended after half as many more.
# What a leg prints goes to $OUT/<device>/<leg>/log.txt as it comes, its tables beside that; OUT is
# benchmarks/results, or for a rehearsal a new folder. A leg that has ended well leaves `done` there
# and is passed over from then on, unless FORCE=1. One that fails stops no other: the exit status is 1
# if any has failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

python=${PYTHON:-python}
device=${DEVICE:-cuda}
quick=${QUICK:+--quick}
if [ -n "$quick" ]; then
    out=${OUT:-$(mktemp -d)}
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # toys have nothing to share among cores
else
    out=${OUT:-benchmarks/results}
fi
out=$out/${device%%:*}
mapfile -t legs < <(sed -nE 's/^#   ([a-z-]+) +[0-9]+  .*/\1/p' benchmarks/gpu.sh)

run() {
    echo "+ $*"
    timeout --kill-after=10 "$limit" "$python" "$@"
}

# Each is called with the folder of its tables.
leg_tests() { run -m pytest -m gpu -q ${quick:+--collect-only}; }

leg_engine-l() {
    run benchmarks/engine.py --device "$device" --sizes L --batches 1,8,32,128 --steps 64 --out "$1" $quick
}

leg_engine-xl() {
    run benchmarks/engine.py --device "$device" --sizes XL --batches 8,64 --steps 64 --out "$1" $quick
}

leg_tree() {
    run benchmarks/tree.py --device "$device" --full --shapes mixture --repeats 1 --out "$1" $quick
}

leg_training() {
    run benchmarks/training_loop.py --device "$device" --sizes L --batch 256 --micro-batch 128 \
        --steps 5 --turns 3 --out "$1" $quick
}

leg_swap() { run benchmarks/swap.py --device "$device" --sizes B,L,B $quick; }

leg_rendering() {
    local sizes=VQ-16,VQ-8 repeats=5 images=40
    if [ -n "$quick" ]; then sizes='' repeats=1 images=2; fi
    run benchmarks/rendering.py --device "$device" --sizes "$sizes" --repeats "$repeats" --out "$1" &&
        run benchmarks/encoding.py --limit "$images"
}

leg_full() {
    limit=12h
    run benchmarks/engine.py --device "$device" --sizes B,L,XL --batches 1,8,32,64,128,256 \
        --arrivals 0.7 --out "$1" &&
        run benchmarks/tree.py --device "$device" --full --out "$1" &&
        run benchmarks/training_loop.py --device "$device" --sizes B,L --micro-batch 128 --out "$1" &&
        run benchmarks/study.py --device "$device" --configs training/configs/tinyimagenet50 \
            --out "$1"
}

failed=()
for leg in "${@:-${legs[@]}}"; do
    if ! declare -F "leg_$leg" >/dev/null; then
        echo "no leg $leg; there are ${legs[*]} full" >&2
        exit 2
    fi
done
for leg in "${@:-${legs[@]}}"; do
    folder=$out/$leg
    if [ -e "$folder/done" ] && [ -z "${FORCE:-}" ]; then
        echo "== $leg: done before, see $folder"
        continue
    fi
    rm -rf "$folder" && mkdir -p "$folder" || exit 1
    expected=$(sed -nE "s/^#   $leg +([0-9]+)  .*/\1/p" benchmarks/gpu.sh)
    limit=$((${quick:+200} + ${expected:-0} * 3 / 2)) started=$SECONDS
    echo "== $leg, about ${expected:-many} s"
    if "leg_$leg" "$folder" 2>&1 | tee "$folder/log.txt"; then
        echo "$((SECONDS - started)) s" | tee "$folder/done"
    else
        failed+=("$leg")
        echo "== $leg failed after $((SECONDS - started)) s" | tee -a "$folder/log.txt"
    fi
done
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}; results are in $out" >&2
    exit 1
fi
echo "results are in $out"
