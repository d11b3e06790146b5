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
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun takes one core a task unless it is told
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${nodes%%$'\n'*}  # the first; `| head` may end scontrol by a signal, and with it the job
# One launcher a node; each starts its own ranks (torchrun sets the same environment as the deepspeed launcher). The
# node that SLURM counts first has rank 0 at every start, so a run goes on where its results lie.
# shellcheck disable=SC2016  # each node's own number, as srun gives it there
srun bash -c 'exec torchrun --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" \
    --nproc-per-node "$SLURM_GPUS_ON_NODE" --master-addr "$MASTER_ADDR" --master-port 29500 \
    launch/implant.py --recipe "$@"' implant "$recipe" "$@"
