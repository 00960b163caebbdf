# Everything starts here: `make run` to try the switch, `make test` to test it.
# On a bare Debian 12, as root; what is missing is installed by apt-get.

SHELL := /bin/bash
.DEFAULT_GOAL := help
# The end-to-end tests share two cores, network names and guests' memory: two at a time.
E2E_THREADS ?= 2
CONFIG ?=
# How long each fuzz target runs.
FUZZ_SECONDS ?= 60
export CARGO_TERM_PROGRESS_WHEN ?= never

.PHONY: help build run guests test lint unit instructions e2e bench soak fuzz install uninstall clean

help:
	@echo "make run                  build, start the switch and three namespaces to try it on"
	@echo "make run CONFIG=FILE      build and run this host's switch, configured by FILE"
	@echo "make guests               add two QEMU guests to the running demonstration"
	@echo "make test                 all tests: lints, unit and property tests, fuzzing, end to end"
	@echo "make bench                compare with dpdk-testpmd and Open vSwitch (QUICK=1: a shorter one)"
	@echo "make soak                 everything at once for an hour (SOAK_SECONDS=3600)"
	@echo "make fuzz                 fuzz the engine (FUZZ_SECONDS=60)"
	@echo "make install              install binaries, systemd units, man pages and completions"

build:
	configs/packages.sh build
	cargo build --release --locked

run: build
	configs/packages.sh run
	configs/demo/run.sh $(CONFIG)

guests:
	configs/packages.sh guests
	configs/demo/guests.sh

test:
	@configs/test.sh lint unit fuzz instructions build e2e

lint:
	configs/packages.sh build
	@if cargo fmt --version >/dev/null 2>&1; then cargo fmt --check; else echo "rustfmt is not installed: formatting not checked"; fi
	@if cargo clippy --version >/dev/null 2>&1; then cargo clippy --locked --workspace --all-targets --features dunlin-cli/e2e -- -D warnings; \
	else echo "clippy is not installed: lints not checked"; fi

unit:
	configs/packages.sh build
	cargo test --locked --workspace
	cargo test --locked -p dunlin-engine --features shuttle --lib interleavings

# The hot path must not grow unnoticed: instructions per frame against the committed figures.
instructions:
	configs/packages.sh build test
	bench/instructions.py

e2e: build
	configs/packages.sh run guests test
	configs/demo/guest/image.sh target/guest
	cargo test --locked -p dunlin-cli --features e2e --test e2e -- --test-threads=$(E2E_THREADS)

bench: build
	configs/packages.sh bench
	bench/run.py $(if $(QUICK),--quick) $(SCENARIOS)

# Everything at once for SOAK_SECONDS: memory, buffers and books must hold.
SOAK_SECONDS ?= 3600
soak: build
	configs/packages.sh bench
	bench/soak.py --seconds $(SOAK_SECONDS)

fuzz:
	configs/packages.sh build
	dataplane/engine/fuzz/run.sh $(FUZZ_SECONDS)

PREFIX ?= /usr/local
install: build
	install -m 755 -D -t $(PREFIX)/bin target/release/dunlin target/release/dunlin-control target/release/dunlin-dataplane
	for unit in configs/systemd/*.service; do \
	    sed 's|/usr/local/bin|$(PREFIX)/bin|' $$unit > /etc/systemd/system/$$(basename $$unit); done
	for env in dataplane.env control.env; do \
	    install -m 644 -D configs/systemd/$$env /etc/dunlin/$$env.example; \
	    [ -e /etc/dunlin/$$env ] || cp configs/systemd/$$env /etc/dunlin/$$env; done
	target/release/dunlin man $(PREFIX)/share/man/man1
	install -d $(PREFIX)/share/bash-completion/completions
	target/release/dunlin completions bash > $(PREFIX)/share/bash-completion/completions/dunlin
	getent group dunlin >/dev/null || groupadd --system dunlin
	@echo "now: systemctl daemon-reload && systemctl enable --now dunlin-dataplane dunlin-control"

uninstall:
	rm -f $(PREFIX)/bin/dunlin $(PREFIX)/bin/dunlin-control $(PREFIX)/bin/dunlin-dataplane
	rm -f /etc/systemd/system/dunlin-dataplane.service /etc/systemd/system/dunlin-control.service
	rm -f $(PREFIX)/share/man/man1/dunlin*.1 $(PREFIX)/share/bash-completion/completions/dunlin

clean:
	cargo clean
