#!/usr/bin/env bash
# All checks of the workspace (T023), one after the other, and their results written into
# specs/003-kvs-consistency/quickstart.md: so what stands there was seen. Takes as long as `make test` does.
# Exit status 0: all passed. Results are written either way.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

page=specs/003-kvs-consistency/quickstart.md
begin='<!-- results: written by scripts/sweep.sh -->'
end='<!-- end of results -->'
grep -qxF "$begin" "$page" && grep -qxF "$end" "$page" || {
  echo "sweep: $page has no place for results: the lines '$begin' and '$end' are missing" >&2
  exit 2
}

log=$(mktemp)
results=$(mktemp)
trap 'rm -f "$log" "$results"' EXIT
failed=0

# sweep TEXT command...: a row of the table; the last line of its output that fits PATTERN is its result
row() {
  local text=$1 pattern=$2 began=$SECONDS outcome=passed said
  shift 2
  echo "sweep: $*"
  "$@" 2>&1 </dev/null | tee "$log"
  if ((PIPESTATUS[0])); then outcome=FAILED failed=1; fi
  said=$(sed 's/\x1b\[[0-9;]*m//g' "$log" | grep -E "$pattern" | tail -n 1 | sed 's/^ *//; s/ *$//; s/|/\\|/g')
  echo "| \`$text\` | $outcome | ${said:-} | $((SECONDS - began)) s |" >>"$results"
}

{
  echo "$(git describe --always --dirty 2>/dev/null || echo unknown), $(date -u +%F), $(nproc) cores:"
  echo
  echo '| Check | Result | It says | Took |'
  echo '|---|---|---|---|'
} >"$results"
row 'make verify' '^verify: all passed' make verify
row 'make test' 'Summary \[|^test result' make test
row 'scripts/verify-raft.sh' 'checks' scripts/verify-raft.sh

# Everything up to the first mark, the results, everything from the second one on.
awk -v begin="$begin" -v end="$end" -v results="$results" '
  $0 == end { out = 0; print "" }
  !out
  $0 == begin {
    out = 1
    print ""
    while ((getline line < results) > 0) print line
  }' "$page" >"$log"
cat "$log" >"$page"
echo "sweep: results are in $page"
exit "$failed"
