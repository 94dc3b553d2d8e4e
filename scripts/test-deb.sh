#!/usr/bin/env bash
# Uses the Debian package as a machine would (`make deb-test`): installs it in a fresh Debian, runs the store by its
# unit's word, writes, reads, reloads, upgrades, removes and purges. A line for each thing that holds.
#
#   scripts/test-deb.sh [PACKAGE.deb]     without one, scripts/deb.sh builds it
#
# Needs root on Debian or Ubuntu, and namespaces; where that is not so it says "skipped: why" and is content. What is
# missing (mmdebstrap, iproute2) is installed with apt. The fresh Debian is of this machine's release, for a package runs
# where its libraries are; its archive is kept in the target directory for a month.
#
# There is no systemd in the chroot: the unit's ExecStart is run as the unit's User, and somebody listens at
# NOTIFY_SOCKET. What else the unit says is checked by systemd-analyze (scripts/check-deploy.sh).
set -Eeuo pipefail

say() { printf 'test-deb: %s\n' "$*"; }
ok() { say "ok: $*"; }
fail() {
  say "FAILED: $*" >&2
  exit 1
}
skip() {
  say "skipped: $*"
  exit 0
}

# ---- outside: the package, a fresh Debian, namespaces of their own ---------------------------------------------

have() { command -v "$1" >/dev/null 2>&1; }

outside() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  local deb=${1:-} codename arch target base kept root
  [[ $(id -u) -eq 0 ]] || skip "needs root"
  have apt-get && have dpkg || skip "this is no Debian or Ubuntu"
  # shellcheck disable=SC1091
  codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
  [[ -n $codename ]] || skip "/etc/os-release names no release"
  unshare --mount --pid --net --fork --kill-child true 2>/dev/null \
    || skip "no namespaces can be made here (unshare)"
  need mmdebstrap mmdebstrap || skip "mmdebstrap is not installed, and cannot be"
  need ip iproute2 || skip "iproute2 is not installed, and cannot be"
  if [[ -z $deb ]]; then
    cargo deb --version >/dev/null 2>&1 || skip "cargo-deb is not installed (cargo install --locked cargo-deb)"
    deb=$(scripts/deb.sh | tail -n 1)
  fi
  [[ -f $deb ]] || fail "there is no package $deb"

  target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
  arch=$(dpkg --print-architecture)
  base=$target/package-test
  kept=$base/$codename-$arch.tar
  mkdir -p "$base"
  find "$base" -name '*.tar' -mtime +30 -delete
  if [[ ! -f $kept ]]; then
    say "making a fresh Debian ($codename)"
    # From where this machine's own packages come. Renamed when it is whole.
    if ! mmdebstrap --quiet --format=tar --variant=minbase --include=adduser,man-db,bash-completion \
      "$codename" "$kept.new" - < <(sources "$codename"); then
      rm -f "$kept.new"
      skip "no fresh Debian could be made: the mirror does not answer, or lacks something"
    fi
    mv "$kept.new" "$kept"
  fi

  root=$(mktemp -d "$base/root.XXXXXX")
  # shellcheck disable=SC2064  # as it is now
  trap "rm -rf --one-file-system '$root'" EXIT
  tar --extract --file "$kept" --directory "$root" --numeric-owner
  cp "$deb" "$root/tmp/flaredb.deb"
  # Mounts, processes and ports end with the namespaces, however this ends.
  unshare --mount --propagation private --pid --net --fork --kill-child \
    "${BASH_SOURCE[0]}" --inside "$root"
}

# need PROGRAM PACKAGE
need() {
  have "$1" || [[ -x /usr/sbin/$1 || -x /sbin/$1 ]] && return
  say "installing $2 with apt"
  local install="apt-get install -y -qq --no-install-recommends $2"
  DEBIAN_FRONTEND=noninteractive $install </dev/null >/dev/null 2>&1 \
    || { apt-get update -qq </dev/null >/dev/null 2>&1 && DEBIAN_FRONTEND=noninteractive $install </dev/null >/dev/null 2>&1; }
}

# The mirror of this machine's own release, as apt has it.
sources() {
  local mirror
  mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' "Created-By: Packages" 2>/dev/null \
    | awk -v release="$1" '$2 == release && $3 == "main" { print $1; exit }')
  [[ -n $mirror ]] && printf 'deb %s %s main\n' "$mirror" "$1"
}

# ---- inside -----------------------------------------------------------------------------------------------------

run() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"; }
unit_says() { sed -n "/^$1=/{s///p;q}" "$root/usr/lib/systemd/system/flaredb.service"; }

# until_true WHAT COMMAND...
until_true() {
  local what=$1 tries
  shift
  for ((tries = 0; tries < 300; tries++)); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.1
  done
  cat "$root/tmp/store.log" >&2 || true
  fail "$what: not within 30 s"
}

# says PATTERN COMMAND...: all of the output is read, so that no command writes into a closed pipe.
says() {
  local pattern=$1 said
  shift
  said=$("$@")
  grep -q -e "$pattern" <<<"$said" || fail "not in what \`$*\` says: $pattern"
}

heard() { grep -q "^$1" "$root/tmp/heard"; }

inside() {
  root=$1
  trap 'say "FAILED at line $LINENO" >&2' ERR
  local device devices="null:1:3 zero:1:5 random:1:8 urandom:1:9"
  mount -t proc proc "$root/proc"
  mount -t tmpfs -o mode=755 dev "$root/dev"
  for device in $devices; do
    IFS=: read -r name major minor <<<"$device"
    mknod -m 666 "$root/dev/$name" c "$major" "$minor"
  done
  ln -s /proc/self/fd "$root/dev/fd"
  mount -t tmpfs -o mode=755 run "$root/run"
  PATH=$PATH:/usr/sbin:/sbin ip link set lo up

  local said
  said=$(run env DEBIAN_FRONTEND=noninteractive dpkg --install /tmp/flaredb.deb)
  grep -q 'systemctl enable --now flaredb' <<<"$said" || fail "the installation does not say what comes next: $said"
  [[ $(run dpkg-query -W -f '${Status}' flaredb) == 'install ok installed' ]]
  [[ -z $(run dpkg --audit) ]]
  ok "installed, with all that it depends on: $(run dpkg-query -W -f '${Version} needs ${Depends}' flaredb)"

  [[ $(run stat -c '%U:%G %a' /var/lib/flaredb) == 'flaredb:flaredb 750' ]]
  [[ $(run getent passwd flaredb | cut -d: -f7) == */nologin ]]
  says ' /etc/flaredb/flaredb.toml ' run dpkg-query -W -f '${Conffiles}' flaredb
  [[ ! -e $root/etc/systemd/system/multi-user.target.wants/flaredb.service ]]
  ok "a user of its own, a configuration file that upgrades leave alone, nothing enabled or started"

  looks_right
  lives
  goes
  say "all of it holds"
}

looks_right() {
  local command page
  run rdb-server --config /etc/flaredb/flaredb.toml --check-config >/dev/null
  ok "the configuration as installed is good"

  for page in rdb-server flaredb flaredb-ns-set-mode; do
    run man -w "$page" >/dev/null || fail "no manual page $page"
  done
  for command in $(run flaredb --help | sed -n '/^Commands:/,/^$/s/^  \([a-z-]*\) .*/\1/p'); do
    [[ $command == help ]] || run man -w "flaredb-$command" >/dev/null || fail "no manual page flaredb-$command"
  done
  # What roff does not understand it says on stderr.
  for page in "$root"/usr/share/man/man1/{flaredb,rdb-server}*; do
    [[ -z $(run man --warnings=w -l "${page#"$root"}" 2>&1 >/dev/null) ]] || fail "$page is no good roff"
  done
  says --data-dir run man rdb-server
  says --ttl run man flaredb-put
  ok "a manual page for each program and command"

  run bash -c '. /usr/share/bash-completion/completions/flaredb && complete -p flaredb' >/dev/null
  grep -q '^#compdef flaredb' "$root/usr/share/zsh/vendor-completions/_flaredb"
  grep -q '^complete -c flaredb' "$root/usr/share/fish/vendor_completions.d/flaredb.fish"
  ok "completion for bash, zsh and fish"

  [[ -s $root/usr/share/doc/flaredb/copyright ]]
  says '^==== librocksdb-sys ' zcat -f "$root"/usr/share/doc/flaredb/third-party-licences*
  ok "licences, those of the libraries inside, too"
}

# Starts the store as systemd would; its process is $store.
start() {
  : >"$root/tmp/heard"
  rm -f "$root/run/notify"
  chroot "$root" perl -MSocket -e '
    my ($socket, $message);
    socket($socket, PF_UNIX, SOCK_DGRAM, 0) or die;
    bind($socket, sockaddr_un("/run/notify")) && chmod(0777, "/run/notify") or die;
    $| = 1;
    print "$message\n" while defined recv($socket, $message, 8192, 0)' >>"$root/tmp/heard" &
  listener=$!
  until_true "somebody listens for the store" test -S "$root/run/notify"
  # shellcheck disable=SC2086  # words of a command
  chroot --userspec="$(unit_says User):$(unit_says Group)" "$root" env -i --chdir="$(unit_says WorkingDirectory)" \
    PATH=/usr/sbin:/usr/bin:/sbin:/bin NOTIFY_SOCKET=/run/notify $(unit_says ExecStart) >>"$root/tmp/store.log" 2>&1 &
  store=$!
  until_true "the store says READY" heard READY=1
}

# Ends it as systemd would.
stop() {
  kill -TERM "$store"
  wait "$store" || fail "it ended with exit code $?"
  heard STOPPING=1 || fail "the store did not say STOPPING"
  kill "$listener"
  wait "$listener" || true
}

lives() {
  start
  [[ $(run stat -c %U "/proc/$store") == flaredb ]]
  until_true "the store serves" heard STATUS=serving
  run flaredb put greeting hello >/dev/null
  [[ $(run flaredb get greeting) == hello ]]
  says healthy run flaredb status
  ok "the unit's command says READY and serves: put, get, status"

  kill -HUP "$store"
  until_true "the store says RELOADING" heard RELOADING=1
  ok "a reload is told"

  # An upgrade with a configuration that was edited: both stay, and the store goes on.
  echo '# ours' >>"$root/etc/flaredb/flaredb.toml"
  run env DEBIAN_FRONTEND=noninteractive dpkg --install /tmp/flaredb.deb >/dev/null
  grep -q '^# ours' "$root/etc/flaredb/flaredb.toml"
  kill -0 "$store"
  [[ $(run flaredb get greeting) == hello ]]
  ok "an upgrade leaves the edited configuration and the running store alone"

  stop
  start
  until_true "the store serves again" heard STATUS=serving
  [[ $(run flaredb get greeting) == hello ]]
  stop
  ok "SIGTERM ends it with exit code 0, and the next start has the data"
}

goes() {
  run dpkg --remove flaredb >/dev/null
  [[ ! -e $root/usr/bin/rdb-server && -s $root/etc/flaredb/flaredb.toml && -s $root/var/lib/flaredb/STORE ]]
  ok "removed: configuration and data are still there"
  run dpkg --purge flaredb >/dev/null
  [[ ! -e $root/etc/flaredb && ! -e $root/var/lib/flaredb ]]
  [[ -z $(find "$root/etc" "$root/usr" "$root/var/lib" -path "$root/var/lib/dpkg" -prune -o -name '*flaredb*' -print) ]]
  ok "purged: nothing is left but the user"
}

if [[ ${1:-} == --inside ]]; then
  inside "$2"
else
  outside "$@"
fi
