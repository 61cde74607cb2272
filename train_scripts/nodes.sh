# shellcheck shell=bash disable=SC2034,SC2154  # variables shared with launch.sh
# Sourced by launch.sh: which node of how many this is, and where node 0 listens. Sets
#   nodes, node       number of nodes; number of this one, from 0
#   address, port     of node 0, for the ranks to meet; the port is 0 (any free one) if there is only one node
# from the variables that people and clusters set, in this order of preference:
#   NNODES, WORLD_SIZE, SLURM_STEP_NUM_NODES, SLURM_NNODES     number of nodes; a step may have fewer than its job
#   NODE_RANK, RANK, SLURM_NODEID                              number of this node
#   MASTER_ADDR, SLURM_STEP_NODELIST, SLURM_JOB_NODELIST       address of node 0, in lists the first host
#   MASTER_PORT                                                its port (29500)

fail() {  # one message per mistake: what was found, what is valid, what to type
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 2
}

find_node() {
  if [[ -n ${TORCHELASTIC_RUN_ID:-} ]]; then
    fail "this was started by torchrun, but it starts the processes of a node itself. Run it once on each node: bash $0"
  fi
  _number_of_nodes
  _number_of_this_node
  if (( node >= nodes )); then
    fail "this node has number $node of $nodes nodes; valid numbers are 0 to $((nodes - 1)). On node 0 type" \
      "NNODES=$nodes NODE_RANK=0 bash $0, on the next one NODE_RANK=1, and so on."
  fi
  _meeting_point
}

_number_of_nodes() {
  _whole NNODES 1
  _whole WORLD_SIZE 1
  if [[ -n ${NNODES:-} && -n ${WORLD_SIZE:-} && $NNODES != "$WORLD_SIZE" ]]; then
    fail "NNODES=$NNODES, but WORLD_SIZE=$WORLD_SIZE. Here both mean the number of nodes, not of processes. Type" \
      "'unset WORLD_SIZE' if there are $NNODES nodes; the processes of a node are NPROC."
  fi
  nodes=${NNODES:-${WORLD_SIZE:-}}
  if [[ -z $nodes ]]; then
    nodes=${SLURM_STEP_NUM_NODES:-${SLURM_NNODES:-1}}
    _check_slurm_step
  fi
}

# SLURM started this once per node, not only on the first of them or once per GPU.
_check_slurm_step() {
  if (( nodes > 1 )) && [[ -z ${SLURM_STEP_ID:-} ]]; then
    fail "SLURM gave this job $nodes nodes, but this runs on one of them only. Type" \
      "srun --ntasks-per-node=1 bash $0 to run it on each, or NNODES=1 bash $0 to train on this node alone."
  fi
  if [[ -n ${SLURM_STEP_NUM_TASKS:-} ]] && (( SLURM_STEP_NUM_TASKS != nodes )); then
    fail "SLURM started this $SLURM_STEP_NUM_TASKS times on $nodes nodes; it must run once per node. Type" \
      "srun --ntasks-per-node=1 bash $0"
  fi
}

_number_of_this_node() {
  _whole NODE_RANK 0
  _whole RANK 0
  if [[ -n ${NODE_RANK:-} && -n ${RANK:-} && $NODE_RANK != "$RANK" ]]; then
    fail "NODE_RANK=$NODE_RANK, but RANK=$RANK. Here both mean the number of this node, from 0 to $((nodes - 1))." \
      "Type 'unset RANK' if this is node $NODE_RANK."
  fi
  node=${NODE_RANK:-${RANK:-}}
  if [[ -z $node ]] && (( nodes > 1 )); then
    node=${SLURM_NODEID:-}
    [[ -n $node ]] || fail "there are $nodes nodes, but nothing says which one this is. Set NODE_RANK to 0 on the" \
      "node that MASTER_ADDR names and to 1 ... $((nodes - 1)) on the others: NNODES=$nodes NODE_RANK=0 bash $0"
  fi
  node=${node:-0}
}

_meeting_point() {
  _whole MASTER_PORT 1
  if (( nodes == 1 )); then
    address=127.0.0.1 port=${MASTER_PORT:-0}
    return
  fi
  address=${MASTER_ADDR:-} port=${MASTER_PORT:-29500}
  if [[ -n $address ]]; then return; fi
  local list=SLURM_STEP_NODELIST
  if [[ -z ${!list:-} ]]; then list=SLURM_JOB_NODELIST; fi
  [[ -n ${!list:-} ]] ||
    fail "there are $nodes nodes, but MASTER_ADDR is not set. Set it on all of them to the host name or IP address of" \
      "node 0: MASTER_ADDR=HOST NNODES=$nodes NODE_RANK=$node bash $0"
  command -v scontrol >/dev/null ||
    fail "$list=${!list}, but there is no scontrol here to read it (inside a container?)." \
      "Type MASTER_ADDR=HOST bash $0 with the first host of that list."
  address=$(scontrol show hostnames "${!list}" | head -n 1)
  [[ -n $address ]] || fail "scontrol names no host for $list=${!list}; set MASTER_ADDR."
}

_whole() {  # the variable $1 is not set, or a whole number from $2
  local value=${!1:-}
  if [[ -z $value ]]; then return; fi
  if [[ ! $value =~ ^[0-9]{1,6}$ ]] || (( 10#$value < $2 )); then
    fail "$1=$value; it must be a whole number from $2."
  fi
  printf -v "$1" %d "$((10#$value))"  # 08 would be read as octal
}

# GPUs that a process started here would see; 1 process on a machine without. Containers may lack nvidia-smi.
gpus_of_this_node() {
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    local -a gpus=()
    IFS=, read -r -a gpus <<<"$CUDA_VISIBLE_DEVICES" || true
    echo $(( ${#gpus[@]} > 0 ? ${#gpus[@]} : 1 ))
  elif command -v nvidia-smi >/dev/null; then
    local count
    count=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
    echo $(( count > 0 ? count : 1 ))
  else
    "$VENV/bin/python" -c 'import torch; print(max(torch.cuda.device_count(), 1))'
  fi
}
