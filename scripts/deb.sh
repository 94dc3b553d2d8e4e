#!/usr/bin/env bash
# Builds the Debian package (`make deb`) and prints where it is.
#
#   scripts/deb.sh            needs cargo-deb (cargo install --locked cargo-deb) and dpkg-dev
#
# The programs are those of cargo's dev profile, which is optimised (Cargo.toml): another profile would compile
# RocksDB once more, and what is tested and measured would not be what is shipped. cargo-deb knows only
# target/release, so they are laid there in a target directory of the package's own; it strips them and finds the
# libraries that they need. What goes where: [package.metadata.deb] of rdb-server/Cargo.toml.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  printf 'deb: error: %s\n' "$*" >&2
  exit 1
}

cargo deb --version >/dev/null 2>&1 || fail "cargo-deb is not installed (cargo install --locked cargo-deb)"

# Licences and notices of all that is linked into the programs, each text once.
licences() {
  local package licence name version where dir file sum
  local -A first=()
  echo "What the programs of this package contain beside FlareDB's own code, and under which licences. Where a library"
  echo "came without a text of its own, that of the licence it names stands under others here."
  while IFS='|' read -r package licence; do
    read -r name version where <<<"$package"
    case $name in rdb-*) continue ;; esac
    printf '\n==== %s %s: %s\n' "$name" "${version#v}" "$licence"
    dir=$(sed -n 's/^(\(\/.*\))$/\1/p' <<<"$where")
    [[ -n $dir ]] || dir=$(compgen -G "${CARGO_HOME:-$HOME/.cargo}/registry/src/*/$name-${version#v}") \
      || fail "the source of $name ${version#v} is not in cargo's registry"
    # Of several registries with the same crate one will do.
    while IFS= read -r file; do
      sum=$(sha256sum <"$file")
      if [[ -n ${first[$sum]:-} ]]; then
        printf '\n---- %s: as %s\n' "${file##*/}" "${first[$sum]}"
      else
        first[$sum]="${file##*/} of $name"
        printf '\n---- %s\n\n' "${file##*/}"
        cat "$file"
      fi
    done < <(find "${dir%%$'\n'*}" -maxdepth 3 -type f \
      \( -iname 'licen[cs]e*' -o -iname 'copying*' -o -iname 'notice*' -o -iname 'copyright*' \) | LC_ALL=C sort)
  done < <(cargo tree --locked -p rdb-server -p rdb-cli -e normal --prefix none -f '{p}|{l}' \
    | sed '/^$/d; s/ (\*)$//; s/ (proc-macro)//' | LC_ALL=C sort -u)
}

cargo build --workspace --bins --locked

target=$(realpath "${CARGO_TARGET_DIR:-target}")
package=$target/package
files=$package/release
rm -rf "$package"
mkdir -p "$files/completion"
cp "$target"/debug/rdb-server "$target"/debug/flaredb "$files/"

for shell in bash zsh fish; do
  "$files/flaredb" completion "$shell" >"$files/completion/$shell"
done
"$files/flaredb" man "$files/man"

# The example with every key, and the one that has to differ.
sed 's|^#data_dir = "\./data"$|data_dir = "/var/lib/flaredb"|' deploy/flaredb.example.toml >"$files/flaredb.toml"
grep -q '^data_dir = "/var/lib/flaredb"$' "$files/flaredb.toml" \
  || fail "deploy/flaredb.example.toml shows no data_dir that could be set"
"$files/rdb-server" --config "$files/flaredb.toml" --check-config >/dev/null

licences >"$files/third-party-licences"
gzip -9 --no-name "$files"/man/* "$files/third-party-licences"

# The same commit gives the same package.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
# Its last line is where the package is.
CARGO_TARGET_DIR=$package cargo deb --package rdb-server --no-build --locked --output "$target/debian/"
