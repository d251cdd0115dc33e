#!/usr/bin/env bash
# One process with some of this machine's GPUs, by their numbers; without this script it has all of them.
#   examples/launch/several_gpus.sh 0,1,2,3 python -m benchmarks.quickstart
set -euo pipefail

export CUDA_VISIBLE_DEVICES=$1
shift
exec "$@"
