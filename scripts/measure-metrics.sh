#!/usr/bin/env bash
# How long /metrics takes to answer with many namespaces: three stores, half of the namespaces strong and half
# eventual, a write to each; then 60 scrapes of each store.
#
#   scripts/measure-metrics.sh [NAMESPACES, default 1000]
#
# Prints milliseconds (median, 90 %, worst) and the size of the page. The goal is 50 ms. Builds the programs first
# (cargo's dev profile, which is optimised), and leaves nothing behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

namespaces=${1:-1000}
command -v curl >/dev/null || { echo "curl is not installed" >&2; exit 1; }
cargo build --quiet --workspace --bins
target=${CARGO_TARGET_DIR:-target}/debug
dir=$(mktemp -d)
pids=()
cleanup() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$dir"
}
trap cleanup EXIT

base=$((20000 + RANDOM % 10000))
peers=()
for id in 1 2 3; do peers+=(--peer "$id=127.0.0.1:$((base + id))"); done
for id in 1 2 3; do
  "$target/rdb-server" --store-id "$id" --addr "127.0.0.1:$((base + id))" --http-addr "127.0.0.1:$((base + 10 + id))" \
    --data-dir "$dir/$id" --log-level warn "${peers[@]}" >"$dir/$id.log" 2>&1 &
  pids+=($!)
done
http() { echo "http://127.0.0.1:$((base + 10 + $1))"; }
for id in 1 2 3; do
  for _ in $(seq 100); do curl -sf "$(http "$id")/readyz" >/dev/null && break; sleep 0.1; done
  curl -sf "$(http "$id")/readyz" >/dev/null || { cat "$dir"/*.log >&2; exit 1; }
done

export FLAREDB_ENDPOINTS="127.0.0.1:$((base + 1)),127.0.0.1:$((base + 2)),127.0.0.1:$((base + 3))"
echo "creating $namespaces namespaces"
make_one() {
  local mode=strong
  (($1 % 2)) && mode=eventual
  "$2/flaredb" ns create "n$1" --mode "$mode" >/dev/null
  "$2/flaredb" put -n "n$1" key value >/dev/null
}
export -f make_one
seq "$namespaces" | xargs -P 8 -I{} bash -c 'make_one {} '"$target"
sleep 3

cpu() { curl -s "$(http "$1")/metrics" | awk '/^flaredb_process_cpu_seconds_total/ { print $2 }'; }
for id in 1 2 3; do
  before=$(cpu "$id")
  for _ in $(seq 60); do
    curl -so "$dir/page" -w '%{time_total}\n' "$(http "$id")/metrics"
  done | sort -n | awk -v id="$id" '
    { ms[NR] = $1 * 1000 }
    END {
      printf "store %d: median %.1f ms, 90 %% %.1f ms, worst %.1f ms\n", id, ms[int((NR + 1) / 2)], ms[int(NR * 0.9)], ms[NR]
    }'
  # On a machine that does other things, too, this is what the store itself needed (its other duties included).
  awk -v before="$before" -v after="$(cpu "$id")" \
    'BEGIN { printf "         %.1f ms of processor time each\n", (after - before) * 1000 / 60 }'
  printf '         %d bytes, %d lines\n' "$(wc -c <"$dir/page")" "$(wc -l <"$dir/page")"
done
