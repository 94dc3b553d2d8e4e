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

say() { printf 'chaos-setup: %s\n' "$*"; }
have() { command -v "$1" >/dev/null 2>&1 || [[ -x /usr/sbin/$1 || -x /sbin/$1 ]]; }
has_faketime() { compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null \
  || compgen -G '/usr/lib*/faketime/libfaketimeMT.so.1' >/dev/null; }

missing=()
have ip || missing+=(iproute2)
have mkfs.ext4 || missing+=(e2fsprogs)
have mount || missing+=(mount)
{ have nsenter && have setpriv; } || missing+=(util-linux)
has_faketime || missing+=(libfaketime)
have etcd || missing+=(etcd-server)

if ((${#missing[@]} == 0)); then exit 0; fi
if [[ $(id -u) -ne 0 ]] || ! have apt-get; then
  say "not installed: ${missing[*]} (as root on Debian: apt-get install --no-install-recommends ${missing[*]})"
  exit 0
fi

updated=
for package in "${missing[@]}"; do
  # Old lists name files that are gone: once refreshed, tried again.
  # No service is started: etcd-server would begin one, and the control starts its own.
  install() {
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends "$package" </dev/null >/dev/null 2>&1
  }
  if ! install; then
    if [[ -z $updated ]]; then
      updated=1
      say "apt-get update"
      apt-get update -qq </dev/null >/dev/null 2>&1 || true
    fi
    install || { say "cannot install $package: what needs it is skipped"; continue; }
  fi
  say "installed $package with apt"
done
