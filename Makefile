# What can be done here; each target is a line or two over cargo or a script, which work alone too.
# Demo and bench build in cargo's dev profile (optimised); tests leave only our own crates unoptimised
# (see Cargo.toml), so RocksDB is compiled once.
# No target builds a package by itself (-p): its dependencies would have features of their own, and everything be
# compiled once more.
# Arguments are passed on: make demo ARGS="--help", make bench ARGS="--help".

.DEFAULT_GOAL := help
.PHONY: help setup build up demo test verify fix bench openapi api-check upgrade-check sim sim-bugs sim-search chaos chaos-short deb deb-test clean

help: ## this list
	@awk -F '## ' '/^[a-z-]+:.*## / { sub(/:.*/, "", $$1); printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## find or install what the build needs (the other targets do it first)
	@scripts/setup.sh

build: setup ## rdb-server and flaredb, in target/debug (optimised all the same)
	cargo build --workspace --bins

up: build ## build, and start one store in the background: data in ./data
	scripts/up.sh

demo: setup ## build FlareDB, run a cluster of three, break it, check that nothing was lost
	cargo run --bin flaredb -- demo $(ARGS)

test: setup ## all tests, with cargo-nextest where it is installed
	@scripts/test-setup.sh
	scripts/test.sh

verify: setup ## formatting, clippy, documentation links, dependencies; changes nothing
	scripts/verify.sh

fix: setup ## format, and let clippy mend what it can
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged

bench: setup ## put and get side by side with etcd, as ratios
	cargo build --workspace --bins
	cargo run --bin rdb-bench -- $(ARGS)

openapi: setup ## write specs/003-kvs-consistency/contracts/openapi.json anew, from the code
	WRITE_OPENAPI=1 cargo test --workspace --lib -q -- http::openapi

api-check: setup ## schemathesis against the HTTP port of a fresh store (docs/testing.md)
	cargo build --workspace --bins
	scripts/schemathesis.sh $(ARGS)

upgrade-check: setup ## upgrade a running cluster of an earlier build, store by store (OLD=directory of its programs)
	@test -n "$(OLD)" || { echo "say where the earlier build is: make upgrade-check OLD=DIRECTORY with rdb-server and flaredb" >&2; exit 2; }
	cargo build --workspace --bins
	scripts/rolling-upgrade.sh "$(OLD)" "$${CARGO_TARGET_DIR:-target}/debug"

sim: setup ## the simulator over fixed seeds, and over gRPC (SEEDS=n, default 125)
	cargo build --bin rdb-sim
	cargo run -q --bin rdb-sim -- search --first 1 --seeds $(or $(SEEDS),125) --seconds 15 --minutes 8 $(if $(SEEDS),,--at-least-seeds 100 --at-least-switches 2000)
	cargo run -q --bin rdb-sim -- tonic --seeds 24

sim-bugs: setup ## every planted bug, and the seeds until the simulator catches it; some minutes
	cargo build --bin rdb-sim
	cargo run -q --bin rdb-sim -- bugs --seeds 200 --seconds 30
	cargo run -q --bin rdb-sim -- tonic --controls --seeds 40

sim-search: setup ## the simulator over new seeds, from where the last search stopped (MINUTES=n, default 10)
	cargo run --bin rdb-sim -- search --state target/sim-next-seed --minutes $(or $(MINUTES),10)

chaos: setup ## real stores under faults, judged by what clients saw (MINUTES=n, default 10; docs/chaos.md)
	@scripts/chaos-setup.sh
	cargo build --workspace --bins
	cargo run --bin rdb-chaos -- run --minutes $(or $(MINUTES),10) $(ARGS)

chaos-short: setup ## every fault once, from a fixed seed, and the controls: four minutes at most
	@scripts/chaos-setup.sh
	cargo build --workspace --bins
	cargo run --bin rdb-chaos -- control --etcd-if-installed $(ARGS)
	cargo run --bin rdb-chaos -- run --seed 3 --rounds 13 --longest 5 --patience 5 $(ARGS)

deb: setup ## the Debian package, with cargo-deb (docs/operations.md)
	scripts/deb.sh

deb-test: setup ## build the package, and use it in a chroot: install, start, put and get, purge
	scripts/test-deb.sh

clean: ## remove what was built (RocksDB too: minutes to build again)
	cargo clean
