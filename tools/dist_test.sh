#!/usr/bin/env bash
# bash tools/dist_test.sh CONFIG CHECKPOINT NUM_PROCESSES [options of tools/test.py]
# One process per GPU; without a GPU the processes talk by gloo. MASTER_PORT and NNODES as usual.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,3p' "$0"; exit 2; }
CONFIG=$1 CHECKPOINT=$2 NUM=$3; shift 3
exec python -m torch.distributed.run --nproc-per-node="$NUM" --nnodes="${NNODES:-1}" \
  --node-rank="${NODE_RANK:-0}" --master-addr="${MASTER_ADDR:-127.0.0.1}" \
  --master-port="${MASTER_PORT:-29500}" \
  "$(dirname "$0")/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "$@"
