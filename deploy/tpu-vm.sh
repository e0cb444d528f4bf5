#!/bin/bash
# Many sequences on the hosts of a TPU VM: starts Ray on all of them, evaluates from the first one, and stops Ray.
#
#     TPU=my-tpu ZONE=us-east5-b deploy/tpu-vm.sh \
#         --dataset=davis --data_root=/shared/DAVIS --checkpoint=/shared/dust3r --output=/shared/evaluations/davis
#
# Runs on your own machine, by gcloud. Every host needs the project in CHECKOUT (default: easi3r_jax in the home folder)
# after `make env` and `.venv/bin/pip install "jax[tpu]"`, and the data and output at the same paths; a bucket will
# do: `--data_root=gs://...`. A worker has all chips of a host, which share a sequence. If the slice has several hosts,
# each worker is told that its host is a slice of its own (easi3r_jax/apps/cluster/tpu.py).
#
# Not run so far: no TPU was at hand.

set -euo pipefail
: "${TPU:?name of the TPU VM}" "${ZONE:?its zone}"
checkout=${CHECKOUT:-easi3r_jax}
port=6379
on() { # HOSTS COMMAND
    gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker="$1" --command="cd $checkout && $2"
}

token=$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n') # without it nobody can use Ray's ports
ray="RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$token .venv/bin/ray"
first=$(on 0 "hostname -I" | awk 'NR == 1 { print $1 }')

trap 'on all ".venv/bin/ray stop" > /dev/null' EXIT
on 0 "$ray start --head --node-ip-address=$first --port=$port --include-dashboard=false"
# The first host belongs to the cluster already.
on all "[ \"\$(hostname -I | awk '{ print \$1 }')\" = $first ] || $ray start --address=$first:$port"

flags=$(printf ' %q' "$@")
on 0 "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$token .venv/bin/python -m experiments.evaluate --cluster=$first:$port$flags"
