#!/usr/bin/env bash
# bash tools/dist_train.sh CONFIG NUM_PROCESSES [--max-restarts N] [options of tools/train.py]
# One process per GPU; without a GPU the processes talk by gloo. MASTER_PORT and NNODES as usual.
# With --max-restarts, all processes are started again when one ends in an error, and go on from
# the newest checkpoint; on several machines they then meet at MASTER_ADDR without a NODE_RANK.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,5p' "$0"; exit 2; }
CONFIG=$1 NUM=$2; shift 2
RESTARTS=0 OPTIONS=()
while [ $# -gt 0 ]; do
  case $1 in
    --max-restarts) RESTARTS=$2; shift 2 ;;
    --max-restarts=*) RESTARTS=${1#*=}; shift ;;
    *) OPTIONS+=("$1"); shift ;;
  esac
done
ADDRESS=${MASTER_ADDR:-127.0.0.1} PORT=${MASTER_PORT:-29500}
if [ "$RESTARTS" -gt 0 ]; then
  MEET=(--max-restarts="$RESTARTS" --rdzv-backend=c10d --rdzv-endpoint="$ADDRESS:$PORT"
        --rdzv-id="${JOB_ID:-$PORT}")
else
  MEET=(--node-rank="${NODE_RANK:-0}" --master-addr="$ADDRESS" --master-port="$PORT")
fi
exec python -m torch.distributed.run --nproc-per-node="$NUM" --nnodes="${NNODES:-1}" \
  "${MEET[@]}" "$(dirname "$0")/train.py" "$CONFIG" --launcher pytorch \
  ${OPTIONS[@]+"${OPTIONS[@]}"}
