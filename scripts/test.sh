#!/usr/bin/env bash
# All tests of the workspace (`make test`). cargo-nextest where it is installed: it runs each test
# in a process of its own, kills one that hangs and starts few clusters at a time
# (.config/nextest.toml).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if cargo nextest --version >/dev/null 2>&1; then
  # nextest does not run the examples in documentation. They go first: its summary closes the run.
  cargo test --workspace --doc --quiet
  exec cargo nextest run --workspace
fi

# cargo's own runner knows no test groups: two tests at a time for all, as each cluster of the
# consistency tests is three processes that sync to one disk.
RUST_TEST_THREADS=${RUST_TEST_THREADS:-2} exec cargo test --workspace
