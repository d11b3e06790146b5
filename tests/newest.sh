#!/usr/bin/env bash
# The package as people get it: README's lines in an empty folder, with today's newest versions; the main job twice.
# An environment of its own, made anew; prints the versions that it got. `make test-newest`; about ten minutes.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
place=$root/build/newest
rm -rf "$place"
mkdir -p "$place/folder"
cd "$place/folder"

python3 -m venv "$place/env"
export PATH="$place/env/bin:$PATH" TORCH_EXTENSIONS_DIR="$place/extensions" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
pip wheel --quiet --no-deps --wheel-dir "$place/dist" "$root"
pip install --quiet torch
pip install --quiet "$place"/dist/*.whl
python -c 'from loki_ds.checking.versions import installed; print(", ".join(f"{name} {there}" for name, there in installed().items()))'

if ! python -c 'import sys, torch; sys.exit(torch.cuda.device_count() < 2)'; then
    export DS_ACCELERATOR=cpu OMP_NUM_THREADS=1
fi
loki-ds doctor
loki-ds check tiny/loki
for run in first second; do
    deepspeed --num_gpus 2 --module loki_ds.implant --recipe tiny/loki training.max_steps=20 "run=runs/$run"
done
loki-ds doctor
loki-ds report runs/second > /dev/null
base=$(python -c 'from loki_ds.recipe.file import load_recipe; print(load_recipe("tiny/loki").model.path)')
loki-ds retain "$base" "$base" retention.abilities=tiny retention.include_path=eval/tasks/tiny retention.margin=0.2 --out itself --gate
echo "newest: doctor, check, two jobs, report and gate ended with 0"
