#!/usr/bin/env bash
# Everything that needs a GPU, at Llama-3.1-8B size with random weights, in bfloat16: results go to eval/reports/.
# Needs torch for CUDA and `pip install .[bench]`; one H100 or H200 is enough. Not run yet on a GPU: see eval/reports/ for what was.
set -euo pipefail
cd "$(dirname "$0")/../.."
python eval/benchmarks/attribution.py --pass --shape llama-3.1-8b --dtype bfloat16
python eval/benchmarks/training_step.py --shape llama-3.1-8b --dtype bfloat16 --batch 1 --tokens 4096 --rounds 8 --checkpointing \
    --methods "LoRA r16, all linears" "authors' LoKI Linear" rows "lora (LoKI*)"
