# A cluster of three real processes on free ports of 127.0.0.1, and checks of it, a line each: for scripts
# that are run by people and by tests. Sourced; the caller says who it is in `me`, and which programs to
# start in `bin` (a directory with rdb-server and flaredb) before each `start`; the command line is of `cli`
# where that is set.
#
# Leaves nothing behind: the stores end with the script, and their directory goes, unless `keep` is set.

command -v curl >/dev/null || { echo "$me: curl is needed; install it and run this again" >&2; exit 2; }

# programs DIRECTORY: it, if both are there
programs() {
  local found program
  found=$(cd "$1" 2>/dev/null && pwd) || { echo "$me: there is no directory $1" >&2; return 1; }
  for program in rdb-server flaredb; do
    [[ -x $found/$program ]] || { echo "$me: no $program in $found" >&2; return 1; }
  done
  echo "$found"
}

dir=$(mktemp -d)
declare -A pids=()
failed=0 checks=0

cleanup() {
  kill -9 "${pids[@]}" 2>/dev/null
  wait 2>/dev/null
  if [[ -n $keep ]]; then echo "logs: $dir"; else rm -rf "$dir"; fi
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# Ten ports in a row that nobody listens on: 1 to 3 for stores, 4 to 6 for their HTTP.
base=
for _ in $(seq 50); do
  try=$((20000 + RANDOM % 2000 * 10)) busy=
  for port in $(seq $((try + 1)) $((try + 6))); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && busy=1
  done
  [[ -z $busy ]] && { base=$try; break; }
done
[[ -n $base ]] || { echo "$me: no free ports found" >&2; exit 2; }

addr() { echo "127.0.0.1:$((base + $1))"; }
http() { echo "http://127.0.0.1:$((base + 3 + $1))"; }
peers=()
for id in 1 2 3; do peers+=(--peer "$id=$(addr $id)"); done

# start ID [MODE]: the mode that it declares for the namespace logs
start() {
  local id=$1
  "$bin/rdb-server" --store-id "$id" --addr "$(addr "$id")" --http-addr "127.0.0.1:$((base + 3 + id))" \
    --data-dir "$dir/$id" "${peers[@]}" --namespace-mode "logs=${2:-eventual}" >>"$dir/$id.log" 2>&1 &
  pids[$id]=$!
}

stop() { kill "${pids[$1]}" 2>/dev/null; wait "${pids[$1]}" 2>/dev/null; }

stop9() { kill -9 "${pids[$1]}" 2>/dev/null; wait "${pids[$1]}" 2>/dev/null; }

# at ID command...: the command line, asking that store alone
at() {
  local id=$1
  shift
  "${cli:-$bin}/flaredb" --endpoints "$(addr "$id")" "$@" 2>>"$dir/cli.log"
}

any() { "${cli:-$bin}/flaredb" --endpoints "$(addr 1),$(addr 2),$(addr 3)" "$@" 2>>"$dir/cli.log"; }

# within SECONDS command...: whether it succeeds once
within() {
  local until=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < until)) || return 1
    sleep 0.1
  done
}

ready() { curl -fs "$(http "$1")/readyz"; }
all_ready() { ready 1 && ready 2 && ready 3; }

# check TEXT command...: a line for it
check() {
  local text=$1
  shift
  checks=$((checks + 1))
  if "$@"; then
    echo "ok      $text"
  else
    echo "FAILED  $text"
    failed=$((failed + 1))
  fi
}

says() { [[ $("${@:2}") == "$1" ]]; }
exits() {
  "${@:2}" >/dev/null
  [[ $? == "$1" ]]
}
leader() {
  local id
  for id in 1 2 3; do
    curl -fs "$(http $id)/metrics" | grep -q '^flaredb_raft_is_leader{region="2"} 1' && { echo $id; return; }
  done
  return 1
}
has_metric() { curl -fs "$(http "$1")/metrics" | grep -qxF "$2"; }
mode_of() { any ns modes -o json | tr -d '\n ' | grep -q "\"mode\":\"$2\",\"namespace\":\"$1\""; }

# The end: what came of it, and the exit status.
verdict() {
  check "the stores' logs tell of no panic" bash -c "! grep -l panicked '$dir'/*.log"
  echo
  if ((failed)); then
    keep=1
    echo "$failed of $checks checks FAILED"
    exit 1
  fi
  echo "all $checks checks passed"
}
