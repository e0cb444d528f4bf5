#!/bin/bash
# Many sequences on the nodes of a Slurm job: starts a Ray cluster, evaluates on it, and stops it.
#
#     sbatch --nodes=4 --gpus-per-node=8 deploy/slurm.sh \
#         --dataset=davis --data_root=/shared/DAVIS --checkpoint=/shared/dust3r --output=/shared/davis
#
# What follows the script's name are flags of `python -m experiments.evaluate`, or of the program that PROGRAM names:
# `sbatch --export=ALL,PROGRAM=reconstruct ... --seq='/shared/videos/*.mp4' --output=/shared/results`.
# PYTHON is that of the environment (default: `python`, as active where sbatch was typed). JOIN_SECONDS is how long the
# nodes may take to join (default: 300).
#
# All nodes need the environment, the data and the output at the same paths. A node that fails costs one attempt of
# what it worked on; after the job's time limit, or the loss of its first node, the same command resumes.

#SBATCH --job-name=easi3r
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --no-kill

set -euo pipefail
python=$(command -v "${PYTHON:-python}")
ray() { "$python" -m ray.scripts.scripts "$@"; }
fail() {
    echo "error: $*" >&2
    exit 1
}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # where this script runs
port=$((20000 + SLURM_JOB_ID % 10000))

# This node's address in the network: as Slurm has it, as its name resolves, or as its interfaces have it. Not the
# loopback's, which Debian gives a host's own name: no other node could join there.
addresses() {
    local known
    known=$(scontrol show node "$first" --oneliner | tr ' ' '\n' | sed -n 's/^NodeAddr=//p')
    echo "$known"
    getent ahostsv4 "$known" || true
    getent ahostsv4 "$first" || true
    hostname -I | tr ' ' '\n' || true
}
address=$(addresses | awk '$1 ~ /^[0-9]+(\.[0-9]+)+$/ && $1 !~ /^127\./ && !found { print found = $1 }')
[ -n "$address" ] || fail "$first has no address but the loopback's: set its NodeAddr in slurm.conf."

# Whoever reaches Ray's ports could run programs on the nodes: without this token nobody can.
RAY_AUTH_TOKEN=$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

trap 'ray stop > /dev/null' EXIT # and Slurm ends the other nodes' step
ray start --head --node-ip-address="$address" --port="$port" --num-cpus="$SLURM_CPUS_ON_NODE" --include-dashboard=false

# --no-kill, --kill-on-bad-exit=0: the loss of one node does not end the others.
nodes=$SLURM_JOB_NUM_NODES
others=$((nodes - 1))
joined() { # number of living nodes
    "$python" -c '
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(sum(node["Alive"] for node in ray.nodes()))' "$address:$port"
}
if ((others)); then
    # Ray gives up after half a minute, which a busy node may need: it is started again.
    srun --nodes="$others" --ntasks="$others" --relative=1 --no-kill --kill-on-bad-exit=0 \
        bash -c 'for try in 1 2 3; do "$@" && exit; sleep 5; done; exit 1' start-ray \
        "$python" -m ray.scripts.scripts start --address="$address:$port" --num-cpus="$SLURM_CPUS_ON_NODE" --block &
    step=$!
    # The work is divided by what the cluster has when the program starts, so it starts when the nodes are there.
    latest=$((SECONDS + ${JOIN_SECONDS:-300}))
    until count=$(joined) && ((count >= nodes)); do
        ((SECONDS < latest)) || break
        kill -0 "$step" 2> /dev/null || fail "Ray ended on the other nodes before they had joined $address:$port."
        sleep 2
    done
    ((${count:-0} > 1)) || fail "no other node has joined $address:$port within ${JOIN_SECONDS:-300} s: can they reach it?"
    echo "$count of $nodes nodes have joined."
fi

"$python" -m "experiments.${PROGRAM:-evaluate}" --cluster="$address:$port" "$@"
