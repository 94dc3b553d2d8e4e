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

if [[ -z ${FLAREDB_BIN:-} ]]; then
  scripts/setup.sh || exit 2
  cargo build --workspace --bins || exit 2
  FLAREDB_BIN=${CARGO_TARGET_DIR:-target}/debug
fi
me=verify-raft
# shellcheck source=scripts/cluster.sh
. scripts/cluster.sh
bin=$(programs "$FLAREDB_BIN") || exit 2

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

verdict
