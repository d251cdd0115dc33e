#!/usr/bin/env bash
# Processes that mpirun starts, of Open MPI or MPICH: it numbers them, and this gives the numbers their names here. All that
# is before -- is mpirun's own; process 0 must be on this machine, which the others must reach by its name.
#   examples/launch/mpirun.sh -n 2 --hostfile machines -- python -m benchmarks.quickstart
set -euo pipefail

if [[ " $* " != *" -- "* ]]; then
  echo "mpirun.sh needs -- between mpirun's options and the command; got: $*" >&2
  exit 2
fi
options=()
while [ "$1" != -- ]; do
  options+=("$1")
  shift
done
shift
export COORDINATOR=${COORDINATOR:-$(hostname):9876}
# shellcheck disable=SC2016 # the variables are those of each process
exec mpirun "${options[@]}" env COORDINATOR="$COORDINATOR" bash -c '
  export NUM_PROCESSES=${OMPI_COMM_WORLD_SIZE:-$PMI_SIZE} PROCESS_ID=${OMPI_COMM_WORLD_RANK:-$PMI_RANK}
  exec "$@"' bash "$@"
