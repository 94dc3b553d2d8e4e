#!/usr/bin/env bash
# Schemathesis against the HTTP port of a fresh store (`make api-check`): requests made from
# /openapi.json, good ones and bad ones; no 5xx for bad input, and every answer as it is declared.
# Arguments are passed on: scripts/schemathesis.sh --max-examples 500
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A version that is known to work; a newer one may judge by new rules.
VERSION=4.32.5
venv=.local/schemathesis-$VERSION
server=${RDB_SERVER:-${CARGO_TARGET_DIR:-target}/debug/rdb-server}

skip() { echo "api-check: skipped: $*"; exit 0; }

[ -x "$server" ] || { echo "api-check: there is no $server: run make api-check, or set RDB_SERVER" >&2; exit 1; }
if [ ! -x "$venv/bin/schemathesis" ]; then
  command -v python3 >/dev/null || skip "there is no python3"
  python3 -m venv "$venv" || { rm -rf "$venv"; skip "python3 cannot make a virtual environment"; }
  "$venv/bin/pip" install --quiet --disable-pip-version-check "schemathesis==$VERSION" ||
    { rm -rf "$venv"; skip "schemathesis $VERSION could not be installed: PyPI is out of reach"; }
fi

dir=$(mktemp -d)
port=$(python3 -c 'import socket; s = [socket.socket() for _ in "ab"]; [x.bind(("127.0.0.1", 0)) for x in s]; print(*(x.getsockname()[1] for x in s))')
read -r grpc http <<<"$port"
"$server" --addr "127.0.0.1:$grpc" --http-addr "127.0.0.1:$http" --data-dir "$dir/data" \
  2>"$dir/log" &
store=$!
trap 'kill "$store" 2>/dev/null || true; wait "$store" 2>/dev/null || true; rm -rf "$dir"' EXIT
for _ in $(seq 150); do
  curl -fs "http://127.0.0.1:$http/readyz" >/dev/null && break
  kill -0 "$store" 2>/dev/null || { cat "$dir/log" >&2; exit 1; }
  sleep 0.2
done

# An eventual namespace with data, so that there is something to be found.
curl -fsS --json '{"name":"cart","mode":"eventual"}' "http://127.0.0.1:$http/v1/namespaces" >/dev/null
for ns in default cart; do
  curl -fsS -X PUT -d value "http://127.0.0.1:$http/v1/kv/$ns/greeting" >/dev/null
done

status=0
# It keeps what it found in the directory where it runs.
root=$PWD
cd "$dir"
"$root/$venv/bin/schemathesis" --config-file "$root/scripts/schemathesis.toml" run "http://127.0.0.1:$http/openapi.json" \
  --url "http://127.0.0.1:$http" --max-examples 60 --seed 1 --no-color "$@" || status=$?
kill -0 "$store" 2>/dev/null || { echo "api-check: the store is gone" >&2; status=1; }
if grep -q panicked "$dir/log"; then
  grep panicked "$dir/log" >&2
  status=1
fi
exit "$status"
