#!/usr/bin/env bash
# bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS from the environment, as in MMDetection.
source "$(dirname "$0")/launch.sh"
[ $# -ge 4 ] || usage
PARTITION=$1 JOB_NAME=$2 CONFIG=$3 CHECKPOINT=$4; shift 4
by_slurm "$PARTITION" "$JOB_NAME" test.py "$CONFIG" "$CHECKPOINT" --launcher slurm "$@"
