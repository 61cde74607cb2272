# shellcheck shell=bash disable=SC2034,SC2154  # variables shared with launch.sh
# Sourced by launch.sh: where the rewards of a run are computed. Sets reward_words, what the trainer is told about it.
#   REWARD=local   (default) a reward server on this node, for the ranks of this node; started again if it dies
#   REWARD_URLS    servers that run elsewhere, "http://a:18080,http://b:18080"; every rank uses all of them
#   REWARD=none    whatever the configuration says; nothing is started or checked
# A run whose rewards are all computed in the trainer's own process needs no server and gets none.

reward_words=()
server_options=()
server_deaths=0
MAX_SERVER_DEATHS=5  # in a row, each within a minute of its start: then the trainer's own patience decides
server_started=0

check_reward_variables() {
  reward=${REWARD:-local}
  case $reward in
    local | none) ;;
    *) fail "REWARD=$reward; valid are local (a server on this node) and none, or set REWARD_URLS=http://HOST:18080." ;;
  esac
  if [[ -n ${REWARD_URLS:-} ]]; then
    [[ -z ${REWARD:-} ]] || fail "REWARD=$REWARD and REWARD_URLS=$REWARD_URLS are both set; unset one of them."
    [[ $REWARD_URLS =~ ^https?://[^,\ ]+(,https?://[^,\ ]+)*$ ]] ||
      fail "REWARD_URLS=$REWARD_URLS; expected URLs with commas between them: http://a:18080,http://b:18080"
    reward=urls
  fi
  : "${REWARD_WAIT_S:=1800}"
  _whole REWARD_WAIT_S 0
}

# What the scorers in $1 (separated by spaces) need: reward_words, and a server on this node if it is to be here.
provide_rewards() {
  if [[ -z $1 || $reward == none ]]; then return; fi
  if [[ $reward == urls ]]; then
    local -a urls=()
    IFS=, read -r -a urls <<<"$REWARD_URLS"
    run_child "$VENV/bin/python" "$ROOT/train_scripts/await_servers.py" "$REWARD_WAIT_S" "${urls[@]}" || exit "$status"
    reward_words=("--config.reward_server.urls=($(printf "'%s'," "${urls[@]}"))")
    return
  fi
  local config=${REWARD_CONFIG:-$ROOT/reward_server/server.yaml} scorer
  server_options=(--config "$config" --host 127.0.0.1)
  for scorer in $1; do server_options+=(--only "$scorer"); done
  echo "Starting a reward server for $1 (log: $server_log)"
  start_reward_server 0
  await_server "$REWARD_WAIT_S" tell_server_progress || exit 1
  echo "Reward server ready at $url after $((SECONDS - server_started)) s"
  reward_words=("--config.reward_server.urls=('$url',)")
}

start_reward_server() {  # $1: port
  server_started=$SECONDS
  if [[ -n ${REWARD_GPU+set} ]]; then
    CUDA_VISIBLE_DEVICES=$REWARD_GPU start_server "$REWARD_VENV" "${server_options[@]}" --port "$1"
  else
    start_server "$REWARD_VENV" "${server_options[@]}" --port "$1"
  fi
}

tell_server_progress() {
  if (( $1 % 15 == 0 )); then echo "Waiting for the reward server ($1 s): $(tail -n 1 "$server_log")"; fi
}

# A server that dies comes back on the same port, where the trainer waits for it (reward_server.server_wait_s).
keep_server_running() {
  if [[ -z $server ]] || is_running "$server"; then return; fi
  end_of "$server"
  server_deaths=$(( SECONDS - server_started < 60 ? server_deaths + 1 : 1 ))
  if (( server_deaths > MAX_SERVER_DEATHS )); then
    server=''
    echo "The reward server ended $server_deaths times in a row, at last with status $status; see $server_log" >&2
    return
  fi
  echo "The reward server ended with status $status (log: $server_log); starting it again" >&2
  start_reward_server "${url##*:}"
}
