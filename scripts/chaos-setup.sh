#!/usr/bin/env bash
# Installs what the fault harness (`make chaos`) uses beside cargo, and says what it did, a line each.
#
#   scripts/chaos-setup.sh
#
# With root on Debian or Ubuntu it installs what is missing: iproute2 (network namespaces), e2fsprogs
# and mount (small disks), util-linux (nsenter, setpriv), libfaketime (shifted clocks), etcd-server
# (the control). Without, it names what is missing; rdb-chaos then skips what needs it, with a line,
# and cuts connections with proxies. Never fails: what a machine cannot do is skipped, not broken.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

me=chaos-setup
# shellcheck source=scripts/apt.sh
. scripts/apt.sh

missing=()
have ip || missing+=(iproute2)
have mkfs.ext4 || missing+=(e2fsprogs)
have mount || missing+=(mount)
{ have nsenter && have setpriv; } || missing+=(util-linux)
has_faketime || missing+=(libfaketime)
have etcd || missing+=(etcd-server)
install "${missing[@]}"
