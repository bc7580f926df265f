# Read by dist_*.sh and slurm_*.sh, which say how they are used: they start the processes of a run.
set -euo pipefail
TOOLS=$(dirname "$0")

# usage [PROBLEM]: show it, and the comment that the script begins with.
usage() {
  [ $# -eq 0 ] || echo "$(basename "$0"): $1" >&2
  awk 'NR > 1 { if (!sub(/^# ?/, "")) exit; print }' "$0" >&2
  exit 2
}

# by_torchrun NUM_PROCESSES NUM_RESTARTS TOOL ARGUMENTS...
by_torchrun() {
  local num=$1 restarts=$2 tool=$3; shift 3
  [[ $num =~ ^([1-9][0-9]*|auto|cpu|gpu)$ ]] || usage "NUM_PROCESSES is a count, got '$num'"
  [[ $restarts =~ ^[0-9]+$ ]] || usage "--max-restarts is a count, got '$restarts'"
  local address=${MASTER_ADDR:-127.0.0.1} port=${MASTER_PORT:-29500} meet
  if [ "$restarts" -gt 0 ]; then
    meet=(--max-restarts="$restarts" --rdzv-backend=c10d --rdzv-endpoint="$address:$port"
          --rdzv-id="${JOB_ID:-$port}")
  else
    meet=(--node-rank="${NODE_RANK:-0}" --master-addr="$address" --master-port="$port")
  fi
  exec python -m torch.distributed.run --nproc-per-node="$num" --nnodes="${NNODES:-1}" \
    "${meet[@]}" "$TOOLS/$tool" "$@"
}

# by_slurm PARTITION JOB_NAME TOOL ARGUMENTS...
# When one process ends in an error, Slurm ends the others at once.
by_slurm() {
  local partition=$1 job=$2 tool=$3; shift 3
  local gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
  [ "$gpus" -ge "$per_node" ] || per_node=$gpus
  # shellcheck disable=SC2086  # SRUN_ARGS holds several arguments
  exec srun --partition="$partition" --job-name="$job" --gres="gpu:$per_node" \
    --ntasks="$gpus" --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 ${SRUN_ARGS:-} python -u "$TOOLS/$tool" "$@"
}
