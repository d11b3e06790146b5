#!/usr/bin/env bash
# What only a GPU can show, in 5, 10 or 25 minutes on one H100 or H200: eval/benchmarks/gpu.sh [5|10|25]
# Random weights of the real shapes, no hub, no registry; a real model where SMOLLM2 names its folder.
# Needs torch for CUDA and `pip install .[bench]`. Each part is printed as it ends; called again, it goes on where it was.
# Results: eval/reports/gpu/, put together in eval/reports/gpu.md. Not run on a GPU yet.
set -euo pipefail
cd "$(dirname "$0")/../.."
minutes=${1:-5}
export REPORTS="$PWD/eval/reports/gpu" TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$PWD/build/gpu/triton}"
done_parts=build/gpu
mkdir -p "$done_parts" "$REPORTS"

# part NAME COMMAND...: run it, unless it has ended well before; what it says is kept beside.
part() {
    local name=$1
    shift
    [ -e "$done_parts/$name.done" ] && { echo "== $name: done before"; return; }
    echo "== $name: $*"
    local started=$SECONDS
    "$@" 2>&1 | tee "$done_parts/$name.log"
    echo "$* ($((SECONDS - started)) s)" > "$done_parts/$name.done"
    echo "== $name: $((SECONDS - started)) s"
}
main_job() { deepspeed --num_gpus 1 launch/implant.py "$@"; }
steps() { python eval/benchmarks/training_step.py --dtype bfloat16 --rounds 8 "$@"; }

# Five minutes: can it start, does the whole job run, is the sweep right and how fast.
part doctor loki-ds doctor
part tiny main_job --recipe recipes/tiny/loki.yaml run=build/gpu/tiny training.max_steps=100
part attribution-0.5b python eval/benchmarks/attribution.py --shape qwen2.5-0.5b --dtype float32
part kinds python eval/benchmarks/attribution.py --kinds
part steps-0.5b steps --shape qwen2.5-0.5b --batch 4 --tokens 1024
if [ -n "${SMOLLM2:-}" ]; then
    part smollm2 main_job --recipe recipes/smollm2/calls-q30.yaml "model.path=$SMOLLM2" run=build/gpu/smollm2 --until implant
fi

# Ten: larger shapes, experts, and how a run leaves.
if [ "$minutes" -ge 10 ]; then
    part attribution-1.5b python eval/benchmarks/attribution.py --shape qwen2.5-1.5b --dtype bfloat16 --lengths 512 --reference-layers 2
    part steps-experts steps --shape moe-16-layers --batch 8 --tokens 1024
    part steps-half steps --shape llama-3.1-8b-half --batch 1 --tokens 4096 --checkpointing \
        --methods full "LoRA r16, all linears" rows
    part export python eval/benchmarks/export.py --shape llama-3.1-8b-half
fi

# Twenty-five: 8B, every mode; full needs more than one card holds there. And the plan's peaks against what was measured.
if [ "$minutes" -ge 25 ]; then
    part attribution-8b python eval/benchmarks/attribution.py --shape llama-3.1-8b --dtype bfloat16 --lengths 512 --reference-layers 2
    part pass-8b python eval/benchmarks/attribution.py --pass --shape llama-3.1-8b --dtype bfloat16
    part steps-8b steps --shape llama-3.1-8b --batch 1 --tokens 4096 --checkpointing \
        --methods "LoRA r16, all linears" "authors' LoKI Linear" mask rows "rows, quiet" "lora (LoKI*)"
    part steps-8b-kept steps --shape llama-3.1-8b --batch 1 --tokens 2048 --methods "LoRA r16, all linears" mask rows "lora (LoKI*)"
    if python -c 'import flash_attn' 2> /dev/null; then
        part steps-8b-flash steps --shape llama-3.1-8b --batch 1 --tokens 4096 --checkpointing --attention flash_attention_2 \
            --methods "LoRA r16, all linears" rows
    fi
    part plan python eval/benchmarks/plan.py
    part export-8b python eval/benchmarks/export.py --shape llama-3.1-8b
fi

{
    echo "# On a GPU"
    echo
    python -c 'import torch; print(torch.cuda.get_device_name(), "torch", torch.__version__) if torch.cuda.is_available() else print("No GPU")'
    for found in "$REPORTS"/*.md; do
        echo
        sed 's/^# /## /' "$found"
    done
} > eval/reports/gpu.md
echo "eval/reports/gpu.md"
