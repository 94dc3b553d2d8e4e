#!/usr/bin/env bash
# Schemathesis against the HTTP port of a fresh store (`make api-check`, a step of .ci/run): requests made from
# /openapi.json, good ones and bad ones; no 5xx for bad input, and every answer as it is declared.
# Arguments are passed on: scripts/schemathesis.sh --max-examples 500
#
#   RDB_SERVER           which rdb-server; default: the one that cargo built
#   API_CHECK_LIMIT      how long schemathesis may take, for timeout(1); default 4m (it needs one to two)
#   API_CHECK_INSTALL    the same for its installation; default 5m
#
# Schemathesis comes from PyPI into a virtual environment under cargo's target directory, which is kept between runs. Where
# PyPI is out of reach nothing is checked, and it says SKIPPED; whatever else goes wrong is a failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

me=api-check
# shellcheck source=scripts/apt.sh
. scripts/apt.sh

# A version that is known to work; a newer one may judge by new rules.
VERSION=4.32.5
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
venv=$target/tools/schemathesis-$VERSION
server=${RDB_SERVER:-$target/debug/rdb-server}

skip() { skipped "the HTTP port was not held against /openapi.json" "$*"; exit 0; }
die() { echo "$me: $*" >&2; exit 1; }

[ -x "$server" ] || die "there is no $server: run make api-check, or set RDB_SERVER"

# ---- schemathesis ------------------------------------------------------------------------------

# An environment names its own place, so it is made where it stays; this is there once all of it is.
if [ ! -e "$venv/complete" ]; then
  command -v python3 >/dev/null || install python3
  command -v python3 >/dev/null || skip "there is no python3"
  # Debian has that apart.
  python3 -c 'import ensurepip, venv' 2>/dev/null || install python3-venv
  rm -rf "$venv"
  mkdir -p "$target/tools"
  python3 -m venv "$venv" >/dev/null 2>&1 || { rm -rf "$venv"; skip "python3 makes no virtual environment (Debian: python3-venv)"; }
  pip=("$venv/bin/pip" --disable-pip-version-check --retries 1 --timeout 15 --no-input)
  said=$(mktemp)
  if ! timeout --kill-after=10s "${API_CHECK_INSTALL:-5m}" "${pip[@]}" install --quiet "schemathesis==$VERSION" >"$said" 2>&1; then
    rm -rf "$venv/complete"
    # Reached, and it does not do: nobody's network is at fault.
    if timeout 60s "${pip[@]}" download --quiet --no-deps --dest "$venv/probe" "schemathesis==$VERSION" >/dev/null 2>&1; then
      cat "$said" >&2
      die "schemathesis $VERSION cannot be installed, although PyPI answers: see above"
    fi
    tail -n 3 "$said" >&2
    rm -rf "$venv" "$said"
    skip "schemathesis $VERSION could not be fetched: PyPI is out of reach"
  fi
  rm -f "$said"
  touch "$venv/complete"
  echo "$me: installed schemathesis $VERSION in $venv"
fi

# ---- a store -----------------------------------------------------------------------------------

dir=$(mktemp -d)
store=
trap '[ -z "$store" ] || { kill -9 "$store" 2>/dev/null || true; wait "$store" 2>/dev/null || true; }; rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM
port=$(python3 -c 'import socket; s = [socket.socket() for _ in "ab"]; [x.bind(("127.0.0.1", 0)) for x in s]; print(*(x.getsockname()[1] for x in s))')
read -r grpc http <<<"$port"
"$server" --addr "127.0.0.1:$grpc" --http-addr "127.0.0.1:$http" --data-dir "$dir/data" \
  2>"$dir/log" &
store=$!
ready=
for _ in $(seq 150); do
  curl -fs "http://127.0.0.1:$http/readyz" >/dev/null && { ready=1; break; }
  kill -0 "$store" 2>/dev/null || { cat "$dir/log" >&2; die "the store did not start"; }
  sleep 0.2
done
[ -n "$ready" ] || { cat "$dir/log" >&2; die "the store is not ready"; }

# An eventual namespace with data, so that there is something to be found.
curl -fsS --json '{"name":"cart","mode":"eventual"}' "http://127.0.0.1:$http/v1/namespaces" >/dev/null
for ns in default cart; do
  curl -fsS -X PUT -d value "http://127.0.0.1:$http/v1/kv/$ns/greeting" >/dev/null
done

# ---- the check ---------------------------------------------------------------------------------

status=0
# It keeps what it found in the directory where it runs.
root=$PWD
cd "$dir"
timeout --kill-after=10s "${API_CHECK_LIMIT:-4m}" \
  "$venv/bin/schemathesis" --config-file "$root/scripts/schemathesis.toml" run "http://127.0.0.1:$http/openapi.json" \
  --url "http://127.0.0.1:$http" --max-examples 100 --seed 1 --no-color "$@" </dev/null || status=$?
[ "$status" -ne 124 ] || echo "$me: it took longer than ${API_CHECK_LIMIT:-4m}" >&2
kill -0 "$store" 2>/dev/null || { echo "$me: the store is gone" >&2; tail -n 20 log >&2; status=1; }
if grep -q panicked "$dir/log"; then
  grep panicked "$dir/log" >&2
  status=1
fi
exit "$status"
