#!/usr/bin/env bash
# Makes this machine able to build FlareDB, and says what it did, a line each.
#
#   scripts/setup.sh          (what `make demo` and `make test` run first; quick when all is there)
#
# It checks cargo and the C++ compiler, finds libclang (RocksDB's bindings are generated with it)
# and writes what cargo needs to know to .cargo/local.toml, which .cargo/config.toml includes: from
# then on plain `cargo build` and `cargo test` work in any shell. What is missing is installed with
# apt when this runs as root on Debian or Ubuntu; libclang otherwise comes as a wheel from PyPI into
# .local/, inside this directory. Nothing else is installed, and nothing outside those two ways.
#
#   FLAREDB_LIBCLANG=auto|system|pypi   where libclang may come from (auto: system, then PyPI)
#   LIBCLANG_PATH, BINDGEN_EXTRA_CLANG_ARGS   taken as they are when set, as bindgen does
#
# Keep what it finds stable: another LIBCLANG_PATH makes cargo compile RocksDB once more (minutes).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly local_config=.cargo/local.toml
readonly wheel_dir=.local/libclang

say() { printf 'setup: %s\n' "$*"; }

# fail WHAT NEXT_STEP...
fail() {
  printf 'setup: error: %s\n' "$1" >&2
  shift
  printf 'setup:   %s\n' "$@" >&2
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# ---- cargo -------------------------------------------------------------------------------------

# version_at_least HAVE WANT, both like 1.94 or 1.94.0
version_at_least() {
  local -a have want
  local i
  IFS=. read -r -a have <<<"$1"
  IFS=. read -r -a want <<<"$2"
  for i in 0 1 2; do
    if ((10#${have[i]:-0} != 10#${want[i]:-0})); then
      ((10#${have[i]:-0} > 10#${want[i]:-0}))
      return
    fi
  done
}

check_cargo() {
  local wanted found
  wanted=$(sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' Cargo.toml)
  local next
  next="install Rust $wanted or newer (https://www.rust-lang.org/tools/install), then run this again"
  have cargo || fail "cargo was not found in PATH" "$next"
  found=$(cargo --version 2>&1) || fail "cargo does not run: $found" "$next"
  # "cargo 1.95.0 (f2d3ce0bd 2026-03-21)" or "cargo 1.97.0-nightly (...)"
  if [[ $found =~ ^cargo\ ([0-9]+\.[0-9]+(\.[0-9]+)?) ]]; then
    version_at_least "${BASH_REMATCH[1]}" "$wanted" || fail \
      "cargo ${BASH_REMATCH[1]} is too old: FlareDB needs $wanted or newer" \
      "with rustup: rustup update stable" "else: $next"
  else
    fail "cannot read a version from \`cargo --version\`: $found" "$next"
  fi
}

# ---- apt ---------------------------------------------------------------------------------------

can_apt() { [[ $(id -u) -eq 0 ]] && have apt-get && have apt-cache; }

apt_has() { [[ $(apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: //p') =~ ^[0-9] ]]; }

apt_updated=
apt_update() {
  [[ -z $apt_updated ]] || return 0
  apt_updated=1
  say "apt-get update"
  apt-get update -qq </dev/null >&2
}

# apt_install PACKAGE: quiet unless it fails
apt_install() {
  local log
  log=$(mktemp)
  if DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1" \
    </dev/null >"$log" 2>&1; then
    say "installed $1 with apt"
    rm -f "$log"
  else
    tail -n 15 "$log" >&2
    rm -f "$log"
    return 1
  fi
}

# ---- C++ compiler ------------------------------------------------------------------------------

# RocksDB is C++20: what counts is that the compiler, its mode and its library are all there.
cxx_works() {
  local cxx
  for cxx in ${CXX:-} c++ g++ clang++; do
    have "$cxx" && printf '#include <compare>\n#include <string>\nint main() {}\n' \
      | "$cxx" -std=c++20 -fsyntax-only -x c++ - >/dev/null 2>&1 && return 0
  done
  return 1
}

check_cxx() {
  if cxx_works && have cc; then return; fi
  if can_apt; then
    apt_has build-essential || apt_update || true
    apt_install build-essential || { apt_update && apt_install build-essential; } || true
    if cxx_works && have cc; then return; fi
  fi
  fail "no C and C++ compiler that knows C++20 (g++ 11 or newer, clang 14 or newer)" \
    "Debian, Ubuntu: sudo apt-get install build-essential" \
    "Fedora: sudo dnf install gcc-c++ make    macOS: xcode-select --install" \
    "then run this again"
}

# ---- libclang ----------------------------------------------------------------------------------

# The names that bindgen's loader accepts, in a directory. libclang-cpp is another library.
libclang_in() {
  local file
  for file in "$1"/libclang.so "$1"/libclang-*.so "$1"/libclang.so.* "$1"/libclang-*.so.* \
    "$1"/libclang.dylib; do
    if [[ -e $file && $file != *-cpp.* ]]; then
      printf '%s\n' "$file"
      return 0
    fi
  done
  return 1
}

# Prints the directory of the system's libclang, the newest of several.
find_system_libclang() {
  local dir
  while IFS= read -r dir; do
    if [[ -n $dir ]] && libclang_in "$dir" >/dev/null; then
      printf '%s\n' "$dir"
      return 0
    fi
  done < <(
    set +e # a program or a place that is not there is no error
    printf '%s\n' /usr/lib/llvm-*/lib | sort -t- -k2,2 -rn
    llvm-config --libdir 2>/dev/null
    printf '%s\n' /usr/lib64/llvm*/lib64 /usr/lib64/llvm*/lib /usr/lib/llvm*/lib | sort -r
    # Debian keeps an architecture's libraries apart: only ours will do.
    printf '%s\n' "/usr/lib/$(cc -dumpmachine 2>/dev/null)" /usr/lib64 /usr/lib /usr/local/lib \
      /opt/homebrew/opt/llvm/lib /usr/local/opt/llvm/lib /Library/Developer/CommandLineTools/usr/lib
  )
  return 1
}

apt_libclang() {
  can_apt || return 1
  local package newest
  apt_has libclang1 || apt_has libclang-dev || apt_update || true
  # The distribution's own choice first: it fits its compiler. Then the newest numbered one.
  newest=$(apt-cache search --names-only '^libclang1-[0-9]+$' 2>/dev/null \
    | sed -n 's/^libclang1-\([0-9]*\) .*/\1/p' | sort -rn | head -n 1)
  for package in libclang1 ${newest:+"libclang1-$newest"} libclang-dev; do
    apt_has "$package" || continue
    # A list that is out of date names files that are gone: refresh it once and try again.
    apt_install "$package" || { apt_update && apt_install "$package"; } || continue
    find_system_libclang >/dev/null && return 0
  done
  return 1
}

# Prints the directory of the wheel's libclang, fetching it when it is not there yet.
pypi_libclang() {
  local native="$PWD/$wheel_dir/clang/native" pip file
  if libclang_in "$native" >/dev/null; then
    printf '%s\n' "$native"
    return 0
  fi
  for pip in "python3 -m pip" pip3 pip ""; do
    if [[ -z $pip ]]; then return 1; fi
    if $pip --version >/dev/null 2>&1; then break; fi
  done
  # Unpacked beside and renamed: half a download is never taken for a whole one. PIP_USER in
  # someone's settings does not go together with --target.
  if PIP_USER=0 PIP_ROOT_USER_ACTION=ignore $pip install --quiet --disable-pip-version-check \
    --no-deps --only-binary :all: --target "$wheel_dir.new" libclang </dev/null >&2; then
    rm -rf "$wheel_dir"
    mv "$wheel_dir.new" "$wheel_dir"
  else
    rm -rf "$wheel_dir.new"
    return 1
  fi
  # A wheel made for another C library unpacks and does not load.
  if file=$(libclang_in "$native") \
    && python3 -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$file" >&2; then
    say "fetched the libclang wheel from PyPI into $wheel_dir" >&2
    printf '%s\n' "$native"
    return 0
  fi
  rm -rf "$wheel_dir"
  return 1
}

# Prints the directory that LIBCLANG_PATH shall name.
find_libclang() {
  local from=${FLAREDB_LIBCLANG:-auto}
  if [[ -n ${LIBCLANG_PATH:-} ]]; then
    # bindgen takes a directory or a file here.
    [[ -f $LIBCLANG_PATH ]] || libclang_in "$LIBCLANG_PATH" >/dev/null || fail \
      "LIBCLANG_PATH is set to $LIBCLANG_PATH, where no libclang is" \
      "unset it, or let it name the directory that holds libclang.so"
    printf '%s\n' "$LIBCLANG_PATH"
    return
  fi
  case $from in auto | system | pypi) ;; *)
    fail "FLAREDB_LIBCLANG is '$from'" "it is one of: auto, system, pypi" ;;
  esac
  if [[ $from != pypi ]]; then
    find_system_libclang && return
    # What apt does is told on stderr: stdout is this function's answer.
    if apt_libclang >&2; then
      find_system_libclang && return
    fi
  fi
  if [[ $from != system ]]; then
    pypi_libclang && return
  fi
  fail "libclang was not found and could not be installed (RocksDB's bindings need it)" \
    "Debian, Ubuntu: sudo apt-get install libclang-dev" \
    "Fedora: sudo dnf install clang-devel    macOS: xcode-select --install" \
    "or with python3 and pip in PATH: FLAREDB_LIBCLANG=pypi $0"
}

# A libclang without clang's own headers (libclang1, the wheel) does not find stddef.h. The C
# compiler's do. Prints the arguments for bindgen, or nothing when none are needed.
clang_args() {
  if [[ -n ${BINDGEN_EXTRA_CLANG_ARGS:-} ]]; then
    printf '%s\n' "$BINDGEN_EXTRA_CLANG_ARGS"
    return
  fi
  local lib=$1 header compiler dir
  for header in "$lib"/clang/*/include/stddef.h "$lib"/../lib/clang/*/include/stddef.h; do
    [[ ! -e $header ]] || return 0
  done
  for compiler in ${CC:-} gcc cc; do
    dir=$("$compiler" -print-file-name=include 2>/dev/null) || continue
    if [[ -e $dir/stddef.h ]]; then
      printf -- '-I%s\n' "$dir"
      return 0
    fi
  done
  # clang as the only compiler: it has its headers with it, and says where.
  dir=$(clang -print-resource-dir 2>/dev/null) || dir=
  if [[ -e $dir/include/stddef.h ]]; then
    printf -- '-I%s/include\n' "$dir"
    return 0
  fi
  [[ $(uname -s) == Darwin ]] || fail "no directory with stddef.h was found for libclang" \
    "install gcc or clang with its headers (Debian, Ubuntu: sudo apt-get install build-essential)" \
    "or set BINDGEN_EXTRA_CLANG_ARGS=-I/that/directory"
}

# ---- cargo's configuration ---------------------------------------------------------------------

toml_string() {
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

write_config() {
  local libclang=$1 args=$2 text
  text="# Written by scripts/setup.sh for this machine; not committed. A variable of the shell wins.
[env]
LIBCLANG_PATH = $(toml_string "$libclang")"
  [[ -z $args ]] || text+="
BINDGEN_EXTRA_CLANG_ARGS = $(toml_string "$args")"
  if [[ -f $local_config && $(<"$local_config") == "$text" ]]; then return; fi
  # Written beside and renamed: a cargo that runs meanwhile never reads half a file.
  printf '%s\n' "$text" >"$local_config.$$"
  mv "$local_config.$$" "$local_config"
  say "wrote $local_config (libclang in $libclang)"
}

check_cargo
check_cxx
libclang=$(find_libclang)
args=$(clang_args "$libclang")
write_config "$libclang" "$args"
