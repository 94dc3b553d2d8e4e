# Packages that tests and scripts are better with, installed where this is root on Debian or Ubuntu. Sourced; the caller
# says who it is in `me`. Never fails: what a machine cannot have is named, and what needs it is skipped and says so.

have() { command -v "$1" >/dev/null 2>&1 || [[ -x /usr/sbin/$1 || -x /sbin/$1 ]]; }

has_faketime() { compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null \
  || compgen -G '/usr/lib*/faketime/libfaketimeMT.so.1' >/dev/null; }

# install PACKAGE...: a line for each
install() {
  local package updated=
  (($# > 0)) || return 0
  if [[ $(id -u) -ne 0 ]] || ! have apt-get; then
    echo "$me: not installed: $* (as root on Debian: apt-get install --no-install-recommends $*)"
    return 0
  fi
  for package in "$@"; do
    # Old lists name files that are gone: once refreshed, tried again.
    if ! apt_get "$package"; then
      if [[ -z $updated ]]; then
        updated=1
        echo "$me: apt-get update"
        timeout 120s apt-get update -qq </dev/null >/dev/null 2>&1 || true
      fi
      apt_get "$package" || { echo "$me: cannot install $package"; continue; }
    fi
    echo "$me: installed $package with apt"
  done
}

# No service is started: some packages would begin one.
apt_get() {
  RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive timeout 300s \
    apt-get install -y -qq --no-install-recommends "$1" </dev/null >/dev/null 2>&1
}

# skipped WHAT WHY: not to be overlooked, and told once more at the end of CI (.ci/run)
skipped() {
  printf '\n%s: ==================== SKIPPED ====================\n%s: %s\n%s: because %s\n%s: =================================================\n\n' \
    "$me" "$me" "$1" "$me" "$2" "$me" >&2
  [[ -z ${FLAREDB_SKIPPED:-} ]] || printf '%s: %s, because %s\n' "$me" "$1" "$2" >>"$FLAREDB_SKIPPED"
}
