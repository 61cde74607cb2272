#!/usr/bin/env bash
# Trains on this node, or, run with the same command on each of several nodes, on all of them together.
#
#   CONFIG=config/awm.py:geneval_sd3_no_cfg_1node bash train_scripts/launch.sh [--config.section.key=value ...]
#   NNODES=4 NODE_RANK=0..3 MASTER_ADDR=HOST CONFIG=... bash train_scripts/launch.sh
#
#   CONFIG         recipe, FILE.py:NAME, or the config.json of a run; paths are relative to the repository
#   EXTRA          more --config.section.key=value words, separated by spaces; so are the arguments
#   NPROC          processes on this node (default: its GPUs)
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT   the nodes; also WORLD_SIZE and RANK (of nodes), or SLURM's variables
#   ENGINE         ddp (default), fsdp2, deepspeed_zero1, deepspeed_zero2, or an Accelerate configuration file
#   MAX_RESTARTS   times that torchrun starts the ranks again when one dies (default 0)
#   RESUME         1 (default): continue the run of this name if there is one; 0: the configuration decides
#   REWARD, REWARD_URLS, REWARD_CONFIG, REWARD_GPU, REWARD_WAIT_S   where rewards are computed; see README
#   VENV, REWARD_VENV   environments of trainer and reward server (default .venv and .venv-reward, by setup_env.sh)
#   HF_TOKEN (or HUGGINGFACE_TOKEN), WANDB_API_KEY   access to the model; logging to wandb if set
#
# Everything is printed, and kept in <logdir>/<run_name>/nodes/node_<number>/. Ctrl-C, SIGTERM or SIGUSR1 lets the
# trainer save and end; once more kills at once. Ends with the trainer's status; with 130 after Ctrl-C, and with 0 after
# another signal before there was anything to save. With --dry_run it only prints what a run would do.
# shellcheck disable=SC2329  # functions that only traps call
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
case ${1:-} in -h | --help) sed -n '2,20s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;; esac
VENV=${VENV:-$ROOT/.venv}
REWARD_VENV=${REWARD_VENV:-$ROOT/.venv-reward}
source train_scripts/processes.sh
source train_scripts/nodes.sh
source train_scripts/rewards.sh

check_variables() {
  [[ -n ${CONFIG:-} ]] || fail "no CONFIG. Type CONFIG=config/awm.py:geneval_sd3_no_cfg_1node bash $0"
  [[ -x $VENV/bin/python ]] || fail "there is no environment $VENV. Type bash train_scripts/setup_env.sh, or set VENV."
  _whole NPROC 1
  _whole MAX_RESTARTS 0
  case ${RESUME:=1} in 0 | 1) ;; *) fail "RESUME=$RESUME; valid are 1 (continue the run of this name) and 0." ;; esac
  find_node
  check_reward_variables
  processes=${NPROC:-$(gpus_of_this_node)}
  restarts=${MAX_RESTARTS:-0}
}

# engine_file: the Accelerate configuration; one process needs no torchrun, unless it is to be started again.
choose_engine() {
  local folder=train_scripts/accelerate
  case ${ENGINE:-ddp} in
    ddp)
      engine_file=$folder/multi_gpu.yaml
      if (( nodes > 1 )); then engine_file=$folder/multi_node.yaml; fi
      if (( nodes * processes == 1 && restarts == 0 )); then engine_file=$folder/single_gpu.yaml; fi ;;
    fsdp2 | deepspeed_zero1 | deepspeed_zero2) engine_file=$folder/$ENGINE.yaml ;;
    *)
      engine_file=$ENGINE
      [[ -f $engine_file ]] ||
        fail "ENGINE=$ENGINE; valid are ddp, fsdp2, deepspeed_zero1, deepspeed_zero2, or a file of Accelerate." ;;
  esac
}

# trainer_words and user_words: what the trainer is told. Later words win, but those of lists add up.
choose_trainer_words() {
  local -a extra=()
  read -r -d '' -a extra <<<"${EXTRA:-}" || true
  user_words=(${extra[@]+"${extra[@]}"} "$@")
  trainer_words=(--config "$CONFIG")
  if (( RESUME )); then trainer_words+=(--config.resume_from=auto); fi
  if [[ -n ${WANDB_API_KEY:-} ]] && ! user_says --config.trackers=; then
    trainer_words+=("--config.trackers=('wandb',)")
  fi
  if [[ $reward != none ]] && user_says --config.reward_server.urls=; then
    fail "--config.reward_server.urls is given, and the servers are chosen here too. Type" \
      "REWARD_URLS=http://HOST:18080 instead of it, or REWARD=none to leave the servers to the configuration."
  fi
}

user_says() {  # a word that begins with $1
  local word
  for word in ${user_words[@]+"${user_words[@]}"}; do
    if [[ $word == "$1"* ]]; then return 0; fi
  done
  return 1
}

# What the trainer would do on as many ranks as this would start.
plan_only() {
  local -a ranks=()
  if ! user_says --world; then ranks=(--world_size $((nodes * processes))); fi
  exec "$VENV/bin/python" -m awm.train "${trainer_words[@]}" "${user_words[@]}" ${ranks[@]+"${ranks[@]}"}
}

# Tokens under the names that the libraries know; CPU threads shared among the processes.
prepare_environment() {
  local threads
  threads=$(( $(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1) / processes ))
  threads=$(( threads > 16 ? 16 : threads < 1 ? 1 : threads ))
  if [[ -n ${HUGGINGFACE_TOKEN:-} ]]; then export HF_TOKEN=${HF_TOKEN:-$HUGGINGFACE_TOKEN}; fi
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads} PYTHONUNBUFFERED=1
  export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
  unset RANK WORLD_SIZE NODE_RANK LOCAL_RANK LOCAL_WORLD_SIZE  # of the nodes here; torchrun sets those of the processes
  AWM_LAUNCH=$$.$RANDOM.$(date +%s)  # marks every process that is started here
  export AWM_LAUNCH
}

# From here on what this script and the ranks print goes to the console and to $1.
open_log() {
  pipe=$(mktemp -d)
  mkfifo "$pipe/log"
  # It must outlive everybody, and go on writing the file when the console is gone.
  (trap '' INT TERM HUP USR1 PIPE; exec tee -a "$1" <"$pipe/log") &
  tee=$!
  exec >"$pipe/log" 2>&1
}

# Everything that carries our mark, whatever became of its parent.
marked() {
  grep -lzs "^AWM_LAUNCH=$AWM_LAUNCH\$" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 | grep -vx "$tee" || true
}

on_exit() {
  local code=$? pid
  trap '' INT TERM HUP USR1
  rm -f "${server_url:-}"
  for pid in $trainer $server; do kill -TERM "$pid" 2>/dev/null || true; done
  for (( i = 0; i < 100; i++ )); do
    if ! is_running "$trainer" && ! is_running "$server"; then break; fi
    sleep 0.1
  done
  for pid in $(marked); do kill -KILL "$pid" 2>/dev/null || true; done
  if [[ -n ${tee:-} ]]; then
    exec >&- 2>&-
    wait "$tee" || true
    rm -rf "$pipe"
  fi
  exit "$code"
}

on_signal() {  # $1: name, $2: exit status
  local pid
  if [[ -z $trainer ]]; then
    echo "SIG$1 before training began: there is nothing to save" >&2
    if [[ $1 == INT ]]; then exit "$2"; fi
    exit 0
  fi
  if [[ -n $received ]]; then
    # Some senders signal a process and then its group, which arrives as two.
    if (( SECONDS - received_at < 2 )); then return 0; fi  # 0: not the status of what was interrupted
    # SLURM sends the first before the time limit and the second at it, and kills by itself.
    if [[ $received == USR1 && $1 == TERM ]]; then received=TERM received_at=$SECONDS; return 0; fi
    echo "SIG$1 again: killing everything" >&2
    for pid in $(marked); do kill -KILL "$pid" 2>/dev/null || true; done
    exit "$2"
  fi
  received=$1 received_at=$SECONDS
  echo "SIG$1: the trainer saves and ends; once more kills at once" >&2
  kill -TERM "$trainer" 2>/dev/null || true
}

run_child() {  # a helper that a signal may interrupt; status is its exit status
  "$@" &
  local helper=$!
  end_of "$helper"
  return "$status"
}

check_variables
choose_engine
choose_trainer_words "$@"
prepare_environment
if user_says --dry_run || user_says --dry-run; then plan_only; fi
settings=()
for word in ${user_words[@]+"${user_words[@]}"}; do
  if [[ $word == --config* ]]; then settings+=("$word"); fi  # other words are the trainer's own business
done
described=$("$VENV/bin/python" train_scripts/describe_run.py "${trainer_words[@]}" ${settings[@]+"${settings[@]}"})
run=${described%%$'\n'*} scorers=''
if [[ $described == *$'\n'* ]]; then scorers=${described#*$'\n'}; fi

logs=$run/nodes/node_$node
mkdir -p "$logs"
server_log=$logs/reward_server.log server_url=$logs/reward_server.url
received='' received_at=0
open_log "$logs/train.log"
trap on_exit EXIT
trap 'on_signal INT 130' INT
trap 'on_signal TERM 143' TERM
trap 'on_signal HUP 129' HUP
trap 'on_signal USR1 138' USR1

echo "== $(date '+%F %T') node $node of $nodes ($HOSTNAME), $processes processes, $engine_file, logs in $logs"
if [[ -n $scorers && $reward == local && ! -x $REWARD_VENV/bin/awm-reward-server ]]; then
  fail "there is no environment $REWARD_VENV for the reward server. Type bash train_scripts/setup_env.sh, or set" \
    "REWARD_URLS=http://HOST:18080 to use a server that runs elsewhere."
fi
provide_rewards "$scorers"

command=("$VENV/bin/python" train_scripts/launch_ranks.py --config_file "$engine_file"
  --num_machines "$nodes" --machine_rank "$node" --num_processes $((nodes * processes))
  --main_process_ip "$address" --main_process_port "$port" --max_restarts "$restarts")
# Servers of other nodes may take as long to load as this one's. Only c10d lets several nodes start again together.
patience=$((REWARD_WAIT_S + 600))
rendezvous=timeout=$patience,join_timeout=$patience
if (( nodes > 1 && restarts > 0 )); then
  command+=(--rdzv_backend c10d)
  rendezvous+=,is_host=$( (( node == 0 )) && echo true || echo false )
fi
command+=(--rdzv_conf "$rendezvous" -m awm.train "${trainer_words[@]}" ${reward_words[@]+"${reward_words[@]}"}
  ${user_words[@]+"${user_words[@]}"})
printf '%q ' "${command[@]}"
echo

if (( nodes > 1 )); then
  if (( node == 0 )); then awaited="the other nodes"; else awaited="node 0"; fi
  echo "Waiting for $awaited at $address:$port, up to $((patience / 60)) min"
fi
(trap '' USR1; exec setsid "${command[@]}") &  # the ranks get SIGTERM in its place, once
trainer=$!
while is_running "$trainer"; do
  keep_server_running
  pause 0.5
done
end_of "$trainer"
trainer=''
# 143: they were stopped before they could be told how.
if [[ $received == INT && ( $status == 0 || $status == 143 ) ]]; then status=130; fi
echo "== node $node: the trainer ended with status $status; logs in $logs"
exit "$status"
