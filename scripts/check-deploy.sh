#!/usr/bin/env bash
# Checks the files of deploy/: the alert rules and the scrape configuration with promtool, which runs the rules' own
# tests, too; the systemd unit with systemd-analyze. Where one of them is not installed it says so and is content: a test
# of rdb-server checks the names of metrics without promtool.
# Debian: apt-get install --no-install-recommends prometheus systemd
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../deploy"

if ! command -v promtool >/dev/null 2>&1; then
  echo "skipped: promtool is not installed (it comes with Prometheus)"
else
  (
    cd prometheus
    promtool check rules flaredb.rules.yml
    promtool check config --syntax-only prometheus.example.yml
    promtool test rules flaredb.rules.test.yml
  )
fi

if ! systemd-analyze --version >/dev/null 2>&1; then
  echo "skipped: systemd-analyze is not installed (it comes with systemd)"
else
  unit=$(mktemp -d)
  trap 'rm -rf "$unit"' EXIT
  # It wants to find the programs; here they are built, not installed.
  sed 's|/usr/bin/rdb-server|/bin/sh|' systemd/flaredb.service >"$unit/flaredb.service"
  # An unknown key is a warning to it; of other units of this machine it may say what it likes.
  said=$(systemd-analyze verify --man=no "$unit/flaredb.service" 2>&1) || true
  if grep 'flaredb\.service' <<<"$said"; then
    echo "deploy/systemd/flaredb.service is not good: see above"
    exit 1
  fi
  # From 0 (locked up) to 10 (does what it likes); 2.0 is "OK" to systemd.
  systemd-analyze security --offline=yes --threshold=20 "$unit/flaredb.service" | tail -n 1
fi
