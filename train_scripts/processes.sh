# shellcheck shell=bash disable=SC2034,SC2154  # variables shared with the scripts that source this
# Sourced by quickstart.sh and launch.sh: one reward server and one trainer, which the script that starts them stops,
# to which it passes signals on, and with whose status it ends. Both are started with setsid, in sessions of their own,
# so that Ctrl-C reaches them only through the script and never stops the server while the trainer still needs it.

server='' trainer=''          # process numbers; empty: not running
server_log='' server_url=''  # files, set by the script
url='' status=0

# Starts the reward server in $1, its environment, with the other arguments; appends to $server_log. Its address is in
# $server_url once it is ready. It ends by itself if this script is killed.
start_server() {
  rm -f "$server_url"
  (
    trap '' USR1  # launch.sh answers it; some schedulers send it to every process
    exec setsid "$1/bin/awm-reward-server" "${@:2}" --url-file "$server_url" --exit-with-parent
  ) >>"$server_log" 2>&1 &
  server=$!
}

# Waits until the server is ready, for $1 seconds, and sets url; calls $2 with each second that passed, if given.
await_server() {
  local start=$SECONDS said=0
  until [[ -s $server_url ]]; do
    if ! is_running "$server"; then
      echo "The reward server did not start; its log:" >&2
      tail -n 200 "$server_log" >&2
      return 1
    fi
    if (( SECONDS - start >= $1 )); then
      echo "The reward server was not ready within $1 s; see $server_log" >&2
      return 1
    fi
    if [[ -n ${2:-} ]] && (( SECONDS - start > said )); then
      said=$((SECONDS - start))
      "$2" "$said"
    fi
    pause 0.2
  done
  url=$(<"$server_url")
}

is_running() { [[ -n $1 ]] && kill -0 "$1" 2>/dev/null; }

# Sleeps; unlike a plain sleep it lets a trap run at once.
pause() {
  sleep "$1" &
  wait $! || true
}

# Waits for the child $1, although signals interrupt `wait`, and sets status to its exit status.
end_of() {
  status=0
  wait "$1" || status=$?
  while kill -0 "$1" 2>/dev/null; do
    status=0
    wait "$1" || status=$?
  done
}

# Asks both to end, the trainer first, and waits for them.
stop_all() {
  local pid
  for pid in $trainer $server; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in $trainer $server; do wait "$pid" 2>/dev/null || true; done
}
