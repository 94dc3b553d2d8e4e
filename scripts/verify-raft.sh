#!/usr/bin/env bash
# Starts a cluster of three real processes and checks what FlareDB promises, a line for each: strong
# mode, eventual mode, switches, mismatches. Exit status 0: everything held.
#
#   scripts/verify-raft.sh [--keep]
#
#   FLAREDB_BIN   a directory with rdb-server and flaredb; built with cargo when it is not given
#   --keep        leave the directory with the stores' logs, and say where it is
#
# Needs curl. Uses free ports of 127.0.0.1 and a directory of its own, and leaves nothing else behind.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

keep=
case ${1:-} in
  '') ;;
  --keep) keep=1 ;;
  *) sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" | head -n -1; exit 2 ;;
esac
command -v curl >/dev/null || { echo "verify-raft: curl is needed; install it and run this again" >&2; exit 2; }

if [[ -z ${FLAREDB_BIN:-} ]]; then
  scripts/setup.sh || exit 2
  cargo build --workspace --bins || exit 2
  FLAREDB_BIN=${CARGO_TARGET_DIR:-target}/debug
fi
bin=$(cd "$FLAREDB_BIN" && pwd) || exit 2
for program in rdb-server flaredb; do
  [[ -x $bin/$program ]] || { echo "verify-raft: no $program in $bin" >&2; exit 2; }
done

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
[[ -n $base ]] || { echo "verify-raft: no free ports found" >&2; exit 2; }

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

stop9() { kill -9 "${pids[$1]}" 2>/dev/null; wait "${pids[$1]}" 2>/dev/null; }

# at ID command...: the command line, asking that store alone
at() {
  local id=$1
  shift
  "$bin/flaredb" --endpoints "$(addr "$id")" "$@" 2>>"$dir/cli.log"
}

any() { "$bin/flaredb" --endpoints "$(addr 1),$(addr 2),$(addr 3)" "$@" 2>>"$dir/cli.log"; }

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

for id in 1 2 3; do start $id; done
check "three stores form a cluster" within 60 all_ready

any ns create bank --mode strong >/dev/null
check "strong: a write at store 1 is acknowledged" exits 0 at 1 -n bank put alice 100
check "strong: store 2 reads it at once" says 100 at 2 -n bank get alice -o raw
check "strong: store 3 reads it at once" says 100 at 3 -n bank get alice -o raw
check "strong: a swap from the wrong version is lost (exit code 5)" exits 5 at 2 -n bank cas alice 1 90
any -n bank put --request-id once bob 1 >/dev/null
any -n bank put bob 2 >/dev/null
any -n bank put --request-id once bob 1 >/dev/null
check "strong: a repeated request is applied once" says 2 any -n bank get bob -o raw

killed=$(leader) || killed=1
stop9 "$killed"
check "strong: with the leader killed (-9), writes go on" within 10 any -n bank put carol 1
check "strong: nothing acknowledged is lost" says 100 any -n bank get alice -o raw
other=$((killed % 3 + 1)) last=$((other % 3 + 1))
stop9 $other
sleep 3
check "strong: without a quorum a write is refused (exit code 4)" exits 4 at $last -n bank put carol 2
check "strong: without a quorum a stale read goes on" says 100 at $last -n bank get alice --stale -o raw

check "eventual: a store alone takes a write" exits 0 at $last -n logs put line one
check "eventual: and reads it" says one at $last -n logs get line -o raw
start "$killed"
start $other
check "all come back" within 60 all_ready
check "eventual: all replicas become equal" within 30 any verify logs
check "eventual: the write is at every store" says one at "$killed" -n logs get line -o raw
check "eventual: a swap is refused in that mode (exit code 1)" exits 1 at 1 -n logs cas line 0 two

check "switch: a dry run changes nothing" exits 0 any ns set-mode logs strong --dry-run
check "switch: still eventual" within 1 mode_of logs eventual
check "switch: eventual to strong" exits 0 any ns set-mode logs strong
check "switch: what was written is there" says one at $other -n logs get line -o raw
check "switch: a swap works now" exits 0 any -n logs cas swapped 0 one
check "switch: strong to eventual" exits 0 any ns set-mode logs eventual

stop9 3
start 3 strong
check "mismatch: a store that declares another mode is named in its metrics" within 60 \
  has_metric 3 'flaredb_namespace_mode_mismatch{namespace="logs"} 1'
check "mismatch: the cluster's mode counts" within 5 mode_of logs eventual
stop9 3
start 3
check "mismatch: and is gone with the declaration" within 60 \
  has_metric 3 'flaredb_namespace_mode_mismatch{namespace="logs"} 0'

check "the stores' logs tell of no panic" bash -c "! grep -l panicked '$dir'/*.log"
echo
if ((failed)); then
  keep=1
  echo "$failed of $checks checks FAILED"
  exit 1
fi
echo "all $checks checks passed"
