#!/usr/bin/env bash
# One store in the background (`make up`): the shortest way to a first put. Its data is in ./data, its log in ./data.log.
#
#   RDB_SERVER                  which rdb-server; default: the one that cargo built
#   FLAREDB_STORE__HTTP_ADDR    where it answers over HTTP, as for rdb-server; default 127.0.0.1:50061
set -euo pipefail

server=${RDB_SERVER:-${CARGO_TARGET_DIR:-target}/debug/rdb-server}
http=${FLAREDB_STORE__HTTP_ADDR:-127.0.0.1:50061}

die() { printf 'up: %s\n' "$@" >&2; exit 1; }

host=${http%:*}
host=${host#[}
host=${host%]}

# Whether a store there is ready, without a program that may not be installed.
ready() {
  local answer
  { exec 3<>"/dev/tcp/$host/${http##*:}"; } 2>/dev/null || return 1
  printf 'GET /readyz HTTP/1.0\r\nHost: %s\r\n\r\n' "$http" >&3
  read -r -t 5 answer <&3 || answer=
  exec 3>&-
  [[ $answer == *' 200 '* ]]
}

[[ -x $server ]] || die "there is no $server: run make up, which builds it, or set RDB_SERVER"
if ready; then
  echo "up: a store answers at http://$http already: nothing was started"
  exit 0
fi
# Behind what an earlier one had to say, also where this one is refused because that one runs.
nohup "$server" >>data.log 2>&1 </dev/null &
store=$!
for _ in $(seq 300); do
  sleep 0.1
  if ready; then
    echo "up: a store runs as process $store: data in ./data, log in ./data.log; kill \$(cat data/LOCK) stops it"
    exit 0
  fi
  kill -0 "$store" 2>/dev/null || die "the store did not start; the end of data.log says why:" "$(tail -n 5 data.log)"
done
die "the store is not ready after 30 s; the end of data.log:" "$(tail -n 5 data.log)"
