#!/usr/bin/env bash
# bash tools/dist_train.sh CONFIG NUM_PROCESSES [--max-restarts N] [options of tools/train.py]
# One process per GPU; without a GPU the processes talk by gloo. MASTER_PORT and NNODES as usual.
# With --max-restarts, all processes are started again when one ends in an error, and go on from
# the newest checkpoint; on several machines they then meet at MASTER_ADDR without a NODE_RANK.
source "$(dirname "$0")/launch.sh"
[ $# -ge 2 ] || usage
CONFIG=$1 NUM=$2; shift 2
RESTARTS=0 OPTIONS=()
while [ $# -gt 0 ]; do
  case $1 in
    --max-restarts) RESTARTS=${2:-}; shift; shift || true ;;
    --max-restarts=*) RESTARTS=${1#*=}; shift ;;
    *) OPTIONS+=("$1"); shift ;;
  esac
done
by_torchrun "$NUM" "$RESTARTS" train.py "$CONFIG" --launcher pytorch \
  ${OPTIONS[@]+"${OPTIONS[@]}"}
