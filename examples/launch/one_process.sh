#!/usr/bin/env bash
# One process with all that this machine has: its GPUs or TPUs, or, of neither, one device for each core.
#   examples/launch/one_process.sh python -m benchmarks.quickstart
set -euo pipefail

export JAX_NUM_CPU_DEVICES=${JAX_NUM_CPU_DEVICES:-$(nproc)}
exec "$@"
