#!/usr/bin/env bash
# bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS from the environment, as in MMDetection.
# When one process ends in an error, Slurm ends the others at once.
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,4p' "$0"; exit 2; }
PARTITION=$1 JOB_NAME=$2 CONFIG=$3 LAST=$4; shift 4
GPUS=${GPUS:-8} GPUS_PER_NODE=${GPUS_PER_NODE:-8}
[ "$GPUS" -ge "$GPUS_PER_NODE" ] || GPUS_PER_NODE=$GPUS
# shellcheck disable=SC2086  # SRUN_ARGS holds several arguments
exec srun --partition="$PARTITION" --job-name="$JOB_NAME" --gres="gpu:$GPUS_PER_NODE" \
  --ntasks="$GPUS" --ntasks-per-node="$GPUS_PER_NODE" --cpus-per-task="${CPUS_PER_TASK:-5}" \
  --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
  python -u "$(dirname "$0")/train.py" "$CONFIG" --work-dir "$LAST" --launcher slurm "$@"
