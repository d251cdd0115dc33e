#!/usr/bin/env bash
# One process on each of several machines that ssh reaches, started in the folder that this one is started in; the first
# is process 0, which the others must reach at the port.
#   examples/launch/over_ssh.sh "first second third" python -m benchmarks.quickstart
set -euo pipefail

read -ra machines <<<"$1"
shift
coordinator=${machines[0]}:${PORT:-9876}
command=$(printf '%q ' "$@")
for rank in "${!machines[@]}"; do
  variables="NUM_PROCESSES=${#machines[@]} PROCESS_ID=$rank COORDINATOR=$coordinator"
  # shellcheck disable=SC2029 # all of it is meant to be put together here
  ssh "${machines[rank]}" "cd $(printf '%q' "$PWD") && $variables $command" &
done
status=0
for _ in "${machines[@]}"; do
  wait -n || status=$?
done
exit "$status"
