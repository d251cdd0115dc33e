#!/usr/bin/env bash
# Several processes on this machine as one program. Any launcher can do the same: it starts the command once for each
# process, with three variables in the environment. When one process ends by an error, so do the others.
#   examples/launch/several_processes.sh 2 python -m benchmarks.quickstart
set -euo pipefail

export NUM_PROCESSES=$1
export COORDINATOR=${COORDINATOR:-127.0.0.1:9876}
shift
for ((rank = 0; rank < NUM_PROCESSES; rank++)); do
  PROCESS_ID=$rank "$@" &
done
status=0
for ((rank = 0; rank < NUM_PROCESSES; rank++)); do
  wait -n || status=$?
done
exit "$status"
