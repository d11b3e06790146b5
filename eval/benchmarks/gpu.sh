#!/usr/bin/env bash
# Everything that needs a GPU, at Llama-3.1-8B size with random weights, in bfloat16, on one H100 or H200: results go to eval/reports/.
# Needs torch for CUDA and `pip install .[bench]`. Meant to take under 25 minutes. Not run yet on a GPU: see eval/reports/ for what was.
set -euo pipefail
cd "$(dirname "$0")/../.."
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$(mktemp -d)}"
python eval/benchmarks/attribution.py --pass --shape llama-3.1-8b --dtype bfloat16
# All modes against LoRA and full, one after another; full needs more than one card holds at 8B, so it is measured at half the layers.
python eval/benchmarks/training_step.py --shape llama-3.1-8b --dtype bfloat16 --batch 1 --tokens 4096 --rounds 8 --checkpointing \
    --methods "LoRA r16, all linears" "authors' LoKI Linear" mask rows "rows, quiet" "lora (LoKI*)"
python eval/benchmarks/training_step.py --shape llama-3.1-8b-half --dtype bfloat16 --batch 1 --tokens 4096 --rounds 8 --checkpointing \
    --methods full "LoRA r16, all linears" rows
python eval/benchmarks/export.py --shape llama-3.1-8b
