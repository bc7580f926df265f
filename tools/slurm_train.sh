#!/usr/bin/env bash
# bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS from the environment, as in MMDetection.
source "$(dirname "$0")/launch.sh"
[ $# -ge 4 ] || usage
PARTITION=$1 JOB_NAME=$2 CONFIG=$3 WORK_DIR=$4; shift 4
by_slurm "$PARTITION" "$JOB_NAME" train.py "$CONFIG" --work-dir "$WORK_DIR" --launcher slurm "$@"
