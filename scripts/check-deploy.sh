#!/usr/bin/env bash
# Checks the alert rules and the scrape configuration of deploy/ with promtool, and runs the rules' own tests.
# Where there is no promtool it says so and is content: a test of rdb-server checks the names without it.
# Debian: apt-get install --no-install-recommends prometheus
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../deploy/prometheus"

if ! command -v promtool >/dev/null 2>&1; then
  echo "skipped: promtool is not installed (it comes with Prometheus)"
  exit 0
fi
promtool check rules flaredb.rules.yml
promtool check config --syntax-only prometheus.example.yml
promtool test rules flaredb.rules.test.yml
