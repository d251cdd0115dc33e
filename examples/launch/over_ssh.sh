#!/usr/bin/env bash
# One process on each of several machines that ssh reaches, started in the folder that this one is started in; the first
# is process 0, which the others must reach at the port. Ctrl-C ends all of them at once; a run goes on from its last
# checkpoint. There no environment is activated: name the interpreter by its path.
#   examples/launch/over_ssh.sh "first second third" .venv-3.11/bin/python -m benchmarks.quickstart
set -euo pipefail

read -ra machines <<<"$1"
shift
coordinator=${machines[0]}:${PORT:-9876}
command=$(printf '%q ' "$@")
trap 'kill $(jobs -p) 2>/dev/null || true' INT TERM EXIT
for rank in "${!machines[@]}"; do
  variables="NUM_PROCESSES=${#machines[@]} PROCESS_ID=$rank COORDINATOR=$coordinator"
  # With a terminal of its own (-tt) what runs there ends when the ssh here does.
  # shellcheck disable=SC2029 # all of it is meant to be put together here
  ssh -tt "${machines[rank]}" "cd $(printf '%q' "$PWD") && $variables $command" </dev/null &
done
status=0
for _ in "${machines[@]}"; do
  wait -n || status=$?
done
exit "$status"
