#!/usr/bin/env bash
# What a change must pass beside its tests (`make verify`). Edits nothing, Cargo.lock included.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() { printf '\nverify: %s\n' "$*"; }

step formatting
cargo fmt --all --check

step clippy
cargo clippy --workspace --all-targets --locked -- -D warnings

step "links in the documentation"
cargo doc --workspace --no-deps --locked --quiet

step "alert rules (promtool)"
scripts/check-deploy.sh

step "dependencies (deny.toml)"
if ! cargo deny --version >/dev/null 2>&1; then
  echo "skipped: cargo-deny is not installed (cargo install --locked cargo-deny)"
else
  cargo deny --locked check --hide-inclusion-graph bans licenses sources
  # The database of advisories is fetched from the network: being offline is not the change's fault.
  if cargo deny --locked fetch db >/dev/null 2>&1; then
    cargo deny --locked check --disable-fetch advisories
  else
    echo "skipped: advisories (their database could not be fetched)"
  fi
fi

step "all passed"
