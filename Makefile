# Everything a person or CI does with this tree. Needs Go and make; see README.md.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

# The version comes by -X, so the toolchain need not ask git, which may be
# missing or refuse a checkout of another user's. The tags leave out what the
# BitTorrent library offers and murder does not use: uTP, which would want a C++
# compiler where cgo is on, and two databases.
export GOFLAGS := $(GOFLAGS) -buildvcs=false -tags=disable_libutp,nosqlite,noboltdb
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)
COMMIT  := $(shell git rev-parse HEAD 2>/dev/null)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)

# Murder is pure Go. Only the race detector, which cannot do without, turns cgo on.
export CGO_ENABLED := 0
RACE = $$(if command -v gcc >/dev/null; then echo -race; fi)
GO_TEST = race=$(RACE); cgo=$${race:+1}; CGO_ENABLED=$${cgo:-0} go test $$race

# containerd 2 for the tests; Debian has 1.6.
CONTAINERD2 := v2.4.2
export CONTAINERD2_DIR := $(CURDIR)/bin/containerd-$(CONTAINERD2)

FUZZTIME := 20s

.PHONY: build
build: ## a static bin/murder
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/murder ./cmd/murder

.PHONY: demo
demo: build ## the main job on this machine: a registry, a seeder, a fleet of mirrors
	bin/murder demo

.PHONY: test
test: test-programs lint containerd2 page-driver ## everything CI runs: lint, unit tests, real engines
	race=$(RACE); echo "race detector: $${race:-off, as there is no C compiler}"
	$(GO_TEST) -json $$(go list ./... | grep -v '/integration') | go run ./integration/report
	$(MAKE) --no-print-directory test-deploy
	$(GO_TEST) -json -count=1 -timeout 25m -p 1 ./integration/... | go run ./integration/report # engines need the machine to themselves

.PHONY: test-short
test-short: ## what needs nothing installed, no root and little time; without the race detector
	go test -short ./...

# A module of its own, with Helm and Kubernetes' types in it.
.PHONY: test-deploy
test-deploy: ## the Helm chart, the dashboard, the alerts, against the real binary
	staticcheck=$$(go tool -n staticcheck); cd deploy/check && go vet ./... && $$staticcheck ./... && go test -json ./... | go run -C ../.. ./integration/report

.PHONY: test-programs
test-programs: ## installs the programs the tests drive, as root on Debian
	integration/install.sh

.PHONY: containerd2
containerd2: $(CONTAINERD2_DIR)/containerd

# Its tests are skipped by name where it cannot be had.
$(CONTAINERD2_DIR)/containerd:
	GOBIN=$(CONTAINERD2_DIR) go install -tags 'no_btrfs no_devmapper no_zfs' \
		github.com/containerd/containerd/v2/cmd/ctr@$(CONTAINERD2) \
		github.com/containerd/containerd/v2/cmd/containerd@$(CONTAINERD2) \
		|| echo "containerd $(CONTAINERD2) does not build here; its tests will be skipped"

.PHONY: page-driver
page-driver: integration/page/node_modules/.package-lock.json

# What the tests of the seeder's page drive Chromium with.
integration/page/node_modules/.package-lock.json: integration/page/package-lock.json
	cd integration/page && npm ci --ignore-scripts || echo "playwright-core cannot be had here; the tests of the page will be skipped"

.PHONY: lint
lint: ## what must be clean
	unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt would change:"; echo "$$unformatted"; exit 1; }
	go vet ./...
	go tool staticcheck ./...

.PHONY: hints
hints: ## what might be better; never fails
	go fix -diff ./... || true
	go tool staticcheck -checks=inherit,ST1000,ST1003,ST1020,ST1021,ST1022 ./... || true

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME; `make corpus` keeps what it finds
	for pkg in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' "$$pkg" | grep '^Fuzz' || true); do \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x "$$pkg"; \
		done; \
	done

.PHONY: corpus
corpus: ## keeps in testdata/fuzz, which `go test` runs, the few inputs of what fuzzing found here that reach most
	go run ./integration/corpus ./...

# The benchmarks print one line each, with a ratio; none fails for being slow.
BENCH = MURDER_BENCH=1 go test -count=1 -timeout 60m -v -run

.PHONY: bench-warm
bench-warm: ## a cached blob over loopback, against nginx and the same file
	$(BENCH) '^TestBenchWarm$$' ./integration | grep -E '^(bench|---|ok|FAIL|panic)|_test.go:'

.PHONY: bench-cold
bench-cold: ## the first pull of a 500 MB image, against one straight from the registry
	$(BENCH) '^TestBenchCold$$' ./integration | grep -E '^(bench|---|ok|FAIL|panic)|_test.go:'

.PHONY: bench-disk
bench-disk: ## disk used by a host that has pulled an image with containerd, with --engine-store against without
	$(BENCH) '^TestBenchDisk$$' ./integration | grep -E '^(bench|---|ok|FAIL|panic)|_test.go:'

.PHONY: bench-memory
bench-memory: ## resident memory of a mirror: idle, streaming 1 GiB to 3 clients, and with 1,000 layers, 100 swarms and 200 slow clients; TLS=1 with TLS
	MURDER_BENCH_TLS=$(TLS) $(BENCH) '^TestBench(Memory|Crowd)$$' ./integration | grep -E '^(bench|---|ok|FAIL|panic)|_test.go:'

.PHONY: bench-start
bench-start: ## seconds until a mirror with 50,000 cached blobs is ready and has served one, and what a crash costs in bytes
	$(BENCH) '^(TestBenchStart|TestBytesTwiceAfterCrash)$$' ./integration | grep -E '^(bench|---|ok|FAIL|panic)|_test.go:'

.PHONY: bench-sim
bench-sim: ## large fleets in the simulator, up to 10,000 hosts; SIM="16 hosts|1000 hosts" runs only those
	MURDER_SIM='$(SIM)' MURDER_BENCH=1 go test -count=1 -timeout 4h -v -run '^TestBenchSim$$' ./layers/swarm/sim | grep -E '^(bench|---|ok|FAIL|panic)|_test.go:'

# LAB_FLAGS are the lab's own, as in LAB_FLAGS="-rate 25Mbit -repeat 3"; `bin/murder-lab -h` lists them.
.PHONY: bench-fleet
bench-fleet: build bin/murder-lab ## fleets in network namespaces, as root; SCENARIOS="equal16 waves" runs only those
	bin/murder-lab $(LAB_FLAGS) $(SCENARIOS)

.PHONY: bench-cpu
bench-cpu: build bin/murder-lab ## CPU seconds a GiB of mirror and seeder, and one host against curl, as root
	bin/murder-lab $(LAB_FLAGS) cpu lone

.PHONY: profile
profile: bin/murder-lab ## CPU and heap profiles of mirrors and seeder at full speed into bin/profile, as root
	go build -trimpath -tags=disable_libutp,nosqlite,noboltdb,labprofile -o bin/murder-profile ./cmd/murder
	bin/murder-lab -murder bin/murder-profile -profile bin/profile -out bin/profile $(LAB_FLAGS) cpu
	for name in seeder mirror00 mirror01; do \
		go tool pprof -top -nodecount=40 bin/profile/$$name.cpu | tee bin/profile/$$name.txt | head -30; \
		go tool pprof -top -sample_index=alloc_space -nodecount=15 bin/profile/$$name.heap | tee -a bin/profile/$$name.txt; \
	done

.PHONY: bin/murder-lab
bin/murder-lab:
	go build -o $@ ./integration/lab

.PHONY: chaos
chaos: ## what pulls of 8 hosts do when parts fail, as root; CASES="seeder" runs only those; ends with a table in seconds
	go test -count=1 -timeout 30m -v -run '^TestChaos$$$(if $(CASES),/($(subst $() ,_,$(CASES))))' ./integration | grep -E 'chaos: |^ *---|^(ok|FAIL|panic)|_test.go:' | sed 's/^.*chaos: //'

DURATION := 10m

.PHONY: soak
soak: ## faults at random on one fleet, as root, for DURATION; SEED=n replays the draws of a run
	MURDER_SOAK=$(DURATION) MURDER_SOAK_SEED=$(SEED) go test -count=1 -timeout 24h -v -run '^TestSoak$$' ./integration | grep -E 'chaos: |^ *---|^(ok|FAIL|panic)|_test.go:' | sed 's/^.*chaos: //'

.PHONY: bench-seeders
bench-seeders: ## with three seeders: registry fetches a blob, and how long pulls wait when the preferred one is killed
	$(BENCH) '^TestBenchSeeders$$' ./integration | grep -E '^(bench|---|ok|FAIL|panic)|_test.go:'

.PHONY: bench-push
bench-push: ## seconds from the end of a push of 500 MB until the seeder has all metainfo
	$(BENCH) '^TestBenchPush$$' ./integration | grep -E '^(bench|---|ok|FAIL|panic)|_test.go:'

.PHONY: bench-tracker
bench-tracker: ## announces a second of 20,000 hosts on 10 swarms each, on one core, and memory a peer
	$(BENCH) '^TestBenchTracker$$' ./integration | grep -E '^(bench|---|ok|FAIL|panic)|_test.go:'

.PHONY: bench-page
bench-page: page-driver ## the seeder's page with 2,000 hosts: bytes and time of the first load, CPU and bytes of an update
	$(BENCH) '^TestBenchPage$$' ./integration/page | grep -E '^(bench|---|ok|FAIL|panic)|_test.go:'

IMAGE := murder:$(or $(VERSION),dev)

.PHONY: image
image: ## a container image, by docker or podman; IMAGE=registry.example/murder:v1 names it, PLATFORM=linux/arm64 is for other machines
	DOCKER_BUILDKIT=1 $$(command -v docker || command -v podman) build $(if $(PLATFORM),--platform $(PLATFORM)) --build-arg VERSION=$(VERSION) -t $(IMAGE) .

.PHONY: release
release: ## static binaries for linux/amd64 and linux/arm64, the Helm chart, and their sums, in bin/release
	rm -rf bin/release && mkdir -p bin/release
	for arch in amd64 arm64; do \
		GOOS=linux GOARCH=$$arch go build -trimpath -ldflags '$(LDFLAGS)' -o bin/release/murder-linux-$$arch ./cmd/murder; \
	done
	tar -C deploy/helm --sort=name --owner=0 --group=0 --mtime=@0 -czf bin/release/murder-chart.tgz murder
	cd bin/release && sha256sum * | tee SHA256SUMS

.PHONY: clean
clean:
	rm -rf bin

.PHONY: help
help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' Makefile | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 16
