#!/usr/bin/env bash
# Upgrades a cluster of three real processes from one build to another, store by store, while it is
# written, and checks at each step what has to hold with two builds side by side: strong and eventual mode,
# a switch there and back, nothing acknowledged lost. A line for each check; exit status 0: all held.
#
#   scripts/rolling-upgrade.sh OLD NEW [--keep]
#
#   OLD, NEW   directories with rdb-server and flaredb of the two builds. The command line is the new one.
#   --keep     leave the directory with the stores' logs, and say where it is
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

keep=
[[ ${3:-} == --keep ]] && keep=1
if (($# < 2 || $# > 3)) || [[ $# == 3 && -z $keep ]]; then
  sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" | head -n -1
  exit 2
fi
me=rolling-upgrade
# shellcheck source=scripts/cluster.sh
. scripts/cluster.sh
old=$(programs "$1") && new=$(programs "$2") || exit 2
bin=$old cli=$new

# Writes numbers to a namespace until it is told to stop; those that were acknowledged stand in a file.
writer() {
  local number=0
  while [[ ! -e $dir/stop ]]; do
    number=$((number + 1))
    any -n "$1" put "key $number" "$number" >/dev/null && echo "key $number" >>"$dir/acknowledged-$1"
    sleep 0.05
  done
}

# Whether a store shows all that was acknowledged.
shows_all() {
  at "$1" -n "$2" scan --keys-only -o raw --limit 0 | sort >"$dir/shown"
  sort "$dir/acknowledged-$2" | comm -23 - "$dir/shown" >"$dir/missing"
  [[ ! -s $dir/missing ]]
}
read_everywhere() {
  local store
  at "$1" -n bank put mark "$1" >/dev/null
  for store in 1 2 3; do says "$1" at $store -n bank get mark -o raw || return 1; done
}
gone() { ! any ns describe "$1" >/dev/null; }
grows() {
  local before
  before=$(wc -l <"$dir/acknowledged-$1")
  within 30 eval "(( \$(wc -l <'$dir/acknowledged-$1') > $before + 5 ))"
}

for id in 1 2 3; do start $id; done
check "three stores of the old build form a cluster" within 60 all_ready
any ns create bank --mode strong >/dev/null
any ns create shed --mode strong >/dev/null
for namespace in bank logs; do
  : >"$dir/acknowledged-$namespace"
  writer $namespace &
  pids[writer-$namespace]=$!
done
check "strong: writes go on" grows bank
check "eventual: writes go on" grows logs

bin=$new
for id in 1 2 3; do
  stop $id
  start $id
  check "store $id is upgraded and ready" within 60 all_ready
  check "$id of 3: strong: writes go on" grows bank
  check "$id of 3: strong: every store reads what this one wrote" read_everywhere $id
  check "$id of 3: eventual: each store takes a write" exits 0 at $id -n logs put "mark $id" $id
  check "$id of 3: eventual: and all become equal" within 60 any verify logs
  check "$id of 3: a switch to strong" exits 0 any ns set-mode logs strong
  check "$id of 3: and back" exits 0 any ns set-mode logs eventual
  # What an old store may not know: refused before it gets into a log, or done.
  any ns delete shed --yes
  check "$id of 3: asked to delete a namespace, the stores go on" grows bank
done
check "all of the new build: the namespace is deleted" gone shed

touch "$dir/stop"
wait "${pids[writer-bank]}" "${pids[writer-logs]}"
within 60 any verify logs
for id in 1 2 3; do
  check "nothing acknowledged is lost: strong, at store $id" shows_all $id bank
  check "nothing acknowledged is lost: eventual, at store $id" shows_all $id logs
done
echo "$(wc -l <"$dir/acknowledged-bank") strong and $(wc -l <"$dir/acknowledged-logs") eventual writes were acknowledged meanwhile"
verdict
