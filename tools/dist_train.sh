#!/usr/bin/env bash
# bash tools/dist_train.sh CONFIG NUM_PROCESSES [options of tools/train.py]
# One process per GPU; without a GPU the processes talk by gloo. MASTER_PORT and NNODES as usual.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,3p' "$0"; exit 2; }
CONFIG=$1 NUM=$2; shift 2
exec python -m torch.distributed.run --nproc-per-node="$NUM" --nnodes="${NNODES:-1}" \
  --node-rank="${NODE_RANK:-0}" --master-addr="${MASTER_ADDR:-127.0.0.1}" \
  --master-port="${MASTER_PORT:-29500}" \
  "$(dirname "$0")/train.py" "$CONFIG" --launcher pytorch "$@"
