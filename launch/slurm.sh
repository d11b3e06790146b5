#!/usr/bin/env bash
# Several nodes under SLURM: sbatch launch/slurm.sh recipes/llama3/toolace-q10.yaml retention.abilities=quick [key=value ...]
#SBATCH --job-name=loki-ds
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
set -euo pipefail
recipe=$1
shift
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
# One launcher a node; each starts its own ranks (torchrun sets the same environment as the deepspeed launcher).
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:29500" --rdzv-id "$SLURM_JOB_ID" \
    launch/implant.py --recipe "$recipe" "$@"
