#!/usr/bin/env bash
# Several processes on this machine as one program. Any launcher can do the same: it starts the command once for each
# process, with three variables in the environment. When one process ends by an error, so do the others. Ctrl-C and
# SIGTERM are SIGTERM for all of them, upon which a run ends with a checkpoint.
#   examples/launch/several_processes.sh 2 python -m benchmarks.quickstart
set -euo pipefail

export NUM_PROCESSES=$1
export COORDINATOR=${COORDINATOR:-127.0.0.1:9876}
shift
processes=()
trap 'kill "${processes[@]}" 2>/dev/null || true' INT TERM
for ((rank = 0; rank < NUM_PROCESSES; rank++)); do
  PROCESS_ID=$rank "$@" &
  processes+=("$!")
done
status=0
for process in "${processes[@]}"; do
  wait "$process" || true # until it ends, or a signal comes, and then until it ends
  while kill -0 "$process" 2>/dev/null; do wait "$process" || true; done
  wait "$process" || status=$?
done
exit "$status"
