#!/usr/bin/env bash
# Installs what the tests (`make test`) use beside cargo, and says what it did, a line each. Never fails.
#
#   scripts/test-setup.sh
#
# With root on Debian or Ubuntu it installs libfaketime: a store whose clock is wrong. Without, it says so, and the tests that
# need it leave that part out. The product needs none of it, so scripts/setup.sh does not install it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

me=test-setup
# shellcheck source=scripts/apt.sh
. scripts/apt.sh

has_faketime || install libfaketime
has_faketime || skipped "no store has a wrong clock, so the metrics and logs of clocks are not seen to move" \
  "libfaketime is not installed"
