.DEFAULT_GOAL := help
.PHONY: help test race test18 bench fuzz lint tidy demo ci release-check

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME ?= 60s

# "work" stands for the packages of all modules that go.work names; "./..." for
# those of one. PKG=./baldurhttp narrows a target to a package, ARGS='-run TestX -v'
# passes arguments on to go test.
PKG ?= work
ARGS ?=

help: ## show this
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 15
	@echo "PKG=./baldurhttp narrows test, race, test18, bench, fuzz and lint to a package, ARGS='-run TestX' goes to go test"

test: ## run the tests, on the PostgreSQL of this machine or a downloaded one
	scripts/test $(ARGS) $(PKG)

race: ## run the tests with the race detector
	go test -race -count=1 -timeout 30m $(ARGS) $(PKG)

test18: ## run the tests on PostgreSQL 18, which is downloaded once
	BALDUR_PGBIN=$$(scripts/postgres18) && export BALDUR_PGBIN && scripts/test -count=1 $(ARGS) $(PKG)

bench: ## run the benchmarks
	go test -run=NONE -bench=. -benchmem $(ARGS) $(PKG)

fuzz: ## fuzz each target for FUZZTIME (60s)
	@for package in $$(go list $(PKG)); do \
		for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			go test -run=NONE -fuzz="^$$target\$$" -fuzztime=$(FUZZTIME) $$package || exit; \
		done; \
	done

lint: ## gofmt, go vet, staticcheck, and what git tracks
	@files=$$(gofmt -l .); test -z "$$files" || { echo "not formatted:" $$files; exit 1; }
	go vet $(PKG)
	go run $(STATICCHECK) $(PKG)
	scripts/treecheck

tidy: ## go mod tidy in each module, as if the others were released
	go run ./scripts/tidy

demo: ## show a report of leaks on a throw-away PostgreSQL
	go run ./cmd/baldur demo

ci: ## run everything that CI runs (Debian, as root)
	.ci/run

release-check: ## compare the exported API with the last release, and test the scripts
	scripts/apicheck
	scripts/selftest
