#!/usr/bin/env bash
# Trains the shipped tiny SD3 model with AWM against a GenEval-style reward behind a real HTTP server.
# Hardware: 2 CPU cores and 4 GB of memory are enough; a GPU is used if there is one. Under 10 minutes after
# installation (--full: under an hour). Ends with a before/after table and the path of report.html.
#
#   bash train_scripts/quickstart.sh [--full] [--recipe NAME] [--seed N] [--run-name NAME] [--config.key=value ...]
#
# Ctrl-C at any time: run the same command again and it goes on where it stopped.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"

recipe=quickstart seed=0 name='' overrides=()
while (( $# )); do
  case $1 in
    --full) recipe=quickstart_full ;;
    --recipe) recipe=${2:?"--recipe needs a name of config/awm.py, such as quickstart_simpo_linear"}; shift ;;
    --seed) seed=${2:?"--seed needs a number"}; shift ;;
    --run-name) name=${2:?"--run-name needs a name"}; shift ;;
    --config.*) overrides+=("$1") ;;
    -h|--help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "quickstart.sh: unknown argument $1; see --help" >&2; exit 2 ;;
  esac
  shift
done
name=${name:-$recipe-seed$seed}
run=logs/$name

source train_scripts/environment.sh
install_project train,server

interrupted=0
source train_scripts/processes.sh
trap stop_all EXIT
# The trainer saves on SIGTERM.
# shellcheck disable=SC2329  # by the traps
forward() { interrupted=$1; [[ -n $trainer ]] && kill -TERM "$trainer" 2>/dev/null || exit "$1"; }
trap 'forward 130' INT
trap 'forward 143' TERM

mkdir -p "$run"
server_log=$run/reward_server.log server_url=$run/reward_server.url
: >"$server_log"
start_server "$VENV" --scorer geneval --detector shapes --port 0
await_server 60
echo "Reward server ready at $url, run folder $run"

setsid "$VENV/bin/awm-train" --config "config/awm.py:$recipe" --config.run_name="$name" --config.seed="$seed" \
  --config.reward_server.urls="('$url',)" --config.resume_from=auto ${overrides[@]+"${overrides[@]}"} &
trainer=$!
end_of "$trainer"
trainer=''
(( interrupted )) && exit "$interrupted"
exit "$status"
