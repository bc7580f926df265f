#!/usr/bin/env bash
# bash tools/dist_test.sh CONFIG CHECKPOINT NUM_PROCESSES [options of tools/test.py]
# One process per GPU; without a GPU the processes talk by gloo. MASTER_PORT and NNODES as usual.
source "$(dirname "$0")/launch.sh"
[ $# -ge 3 ] || usage
CONFIG=$1 CHECKPOINT=$2 NUM=$3; shift 3
by_torchrun "$NUM" 0 test.py "$CONFIG" "$CHECKPOINT" --launcher pytorch "$@"
