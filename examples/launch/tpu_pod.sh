#!/usr/bin/env bash
# One process on each machine of a TPU slice, in a folder that all of them have; JAX finds the others by itself.
#   examples/launch/tpu_pod.sh NAME ZONE FOLDER python -m benchmarks.quickstart
set -euo pipefail

name=$1 zone=$2 folder=$3
shift 3
command=$(printf '%q ' "$@")
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="cd $(printf '%q' "$folder") && $command"
