#!/bin/bash
# Many sequences on the nodes of a Slurm job: starts a Ray cluster, evaluates on it, and stops it.
#
#     sbatch --nodes=4 --gpus-per-node=8 deploy/slurm.sh \
#         --dataset=davis --data_root=/shared/DAVIS --checkpoint=/shared/dust3r --output=/shared/davis
#
# What follows the script's name are flags of `python -m experiments.evaluate`, or of the program that PROGRAM names:
# `sbatch --export=ALL,PROGRAM=reconstruct ... --seq='/shared/videos/*.mp4' --output=/shared/results`.
# PYTHON is that of the environment (default: `python`, as active where sbatch was typed).
#
# All nodes need the environment, the data and the output at the same paths. A node that fails costs one attempt of
# what it worked on; after the job's time limit, or the loss of its first node, the same command resumes.

#SBATCH --job-name=easi3r
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --no-kill

set -euo pipefail
python=$(command -v "${PYTHON:-python}")
ray() { "$python" -m ray.scripts.scripts "$@"; }
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) # where this script runs
port=$((20000 + SLURM_JOB_ID % 10000))

# Whoever reaches Ray's ports could run programs on the nodes: without this token nobody can.
RAY_AUTH_TOKEN=$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

trap 'ray stop > /dev/null' EXIT # and Slurm ends the other nodes' step
address=$(getent ahostsv4 "$first" | awk '{ print $1; exit }')
ray start --head --node-ip-address="$address" --port="$port" --num-cpus="$SLURM_CPUS_ON_NODE" --include-dashboard=false

# Nodes join whenever they are ready. --no-kill, --kill-on-bad-exit=0: the loss of one does not end the others.
others=$((SLURM_JOB_NUM_NODES - 1))
if ((others)); then
    srun --nodes="$others" --ntasks="$others" --relative=1 --no-kill --kill-on-bad-exit=0 \
        "$python" -m ray.scripts.scripts start --address="$address:$port" --num-cpus="$SLURM_CPUS_ON_NODE" --block &
fi

"$python" -m "experiments.${PROGRAM:-evaluate}" --cluster="$address:$port" "$@"
