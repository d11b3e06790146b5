#!/usr/bin/env bash
# What only GPUs can show, in 5, 10 or 25 minutes on one H100 or H200, or on two: eval/benchmarks/gpu.sh [5|10|25]
# Random weights of the real shapes, no hub, no registry; a real model where build/real is (eval/real/fetch.py build/real).
# Needs torch for CUDA and `pip install .[bench]`. Each part ends with its figure in a line; called again, it goes on where it was.
# Results: eval/reports/gpu/, put together in eval/reports/gpu.md. Not run on a GPU yet.
# `gpu.sh rehearse` is every part at a tiny shape, in build/rehearsal (tests/distributed/test_gpus.py runs it on pretended GPUs).
set -euo pipefail
cd "$(dirname "$0")/../.."
minutes=${1:-5}
place=build/gpu summary=eval/reports/gpu.md
export REPORTS="$PWD/eval/reports/gpu" TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$PWD/build/gpu/triton}"
small=qwen2.5-0.5b middle=qwen2.5-1.5b experts=moe-16-layers half=llama-3.1-8b-half large=llama-3.1-8b
batch=4 tokens=1024 long=4096 rounds=8 length=512 steps=100 planned=""
methods=() lora="LoRA r16, all linears"
half_methods=(full "$lora" rows) large_methods=("$lora" "authors' LoKI Linear" mask rows "lora (LoKI*)")
if [ "$minutes" = rehearse ]; then
    minutes=25 place=build/rehearsal summary=build/rehearsal/gpu.md
    export REPORTS="$PWD/build/rehearsal/reports"
    small=tiny middle=tiny experts=tiny-experts half=tiny large=tiny
    batch=2 tokens=32 long=32 rounds=2 length=16 steps=3 planned="rows, ZeRO-3, 2 ranks, checkpointing"
    methods=(--methods rows) half_methods=(rows) large_methods=(rows)
fi
mkdir -p "$place" "$REPORTS"

# part NAME COMMAND...: run it, unless it has ended well before; what it says is kept beside, its last line is its figure.
part() {
    local name=$1
    shift
    [ -e "$place/$name.done" ] && { echo "== $name: done before: $(cat "$place/$name.done")"; return; }
    echo "== $name: $*"
    local started=$SECONDS
    "$@" 2>&1 | tee "$place/$name.log"
    echo "$((SECONDS - started)) s; $(grep -v '^[[:space:]]*$' "$place/$name.log" | tail -1)" > "$place/$name.done"
    echo "== $name: $(cat "$place/$name.done")"
}
main_job() { # GPUS RUN RECIPE OVERRIDES...
    local gpus=$1 run=$2
    shift 2
    deepspeed --num_gpus "$gpus" launch/implant.py --recipe "$@" "run=$run"
    loki-ds report "$run" | awk '/^[*][*]/ && !n++'  # to its end, or the pipe breaks
}
sweep() { python eval/benchmarks/attribution.py "$@"; }
steps() { python eval/benchmarks/training_step.py --dtype bfloat16 --rounds "$rounds" "$@"; }
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')

# Five minutes: can it start, on one GPU and on two; does the whole job run; is the sweep right and how fast.
part doctor loki-ds doctor
part tiny main_job 1 "$place/tiny" recipes/tiny/loki.yaml "training.max_steps=$steps"
if [ "$gpus" -ge 2 ]; then
    part tiny-2 main_job 2 "$place/tiny-2" recipes/tiny/loki.yaml "training.max_steps=$steps"
else
    echo "== tiny-2: not run, this machine has one GPU"
fi
part attribution-small sweep --shape "$small" --dtype float32 --lengths "$length"
part steps-small steps --shape "$small" --batch "$batch" --tokens "$tokens" "${methods[@]}"

# Ten: a real model from end to end, larger shapes, experts.
if [ "$minutes" -ge 10 ]; then
    if [ -e build/real/model ]; then
        part smollm2 main_job 1 "$place/smollm2" recipes/smollm2/recommended.yaml model.path=build/real/model
    else
        echo "== smollm2: not run, build/real is not there"
    fi
    part attribution-middle sweep --shape "$middle" --dtype bfloat16 --lengths "$length" --reference-layers 2
    part steps-experts steps --shape "$experts" --batch "$batch" --tokens "$tokens" "${methods[@]}"
    part steps-half steps --shape "$half" --batch 1 --tokens "$long" --checkpointing \
        --methods "${half_methods[@]}"
fi

# Twenty-five: the plan's peaks against the devices' own, and 8B in every mode; full needs more than one card holds there.
if [ "$minutes" -ge 25 ]; then
    part plan python eval/benchmarks/plan.py --only "$planned"
    part attribution-large sweep --shape "$large" --dtype bfloat16 --lengths "$length" --reference-layers 2
    part steps-large steps --shape "$large" --batch 1 --tokens "$long" --checkpointing \
        --methods "${large_methods[@]}"
    if python -c 'import flash_attn' 2> /dev/null; then
        part steps-flash steps --shape "$large" --batch 1 --tokens "$long" --checkpointing --attention flash_attention_2 \
            --methods "$lora" rows
    fi
fi

{
    echo "# On a GPU"
    echo
    python -c 'import torch; print(torch.cuda.device_count(), "x", torch.cuda.get_device_name(), "torch", torch.__version__)'
    for report in "$REPORTS"/*.md; do
        [ -e "$report" ] || continue
        echo
        sed 's/^# /## /' "$report"
    done
} > "$summary"
echo "$summary"
