.DEFAULT_GOAL := help
.PHONY: help test race test18 bench fuzz lint demo ci

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME ?= 60s

help: ## show this
	@sed -n 's/^\([a-z0-9]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

test: ## run the tests
	scripts/test ./...

race: ## run the tests with the race detector
	go test -race -count=1 ./...

test18: ## run the tests on PostgreSQL 18, which is downloaded once
	BALDUR_PGBIN=$$(scripts/postgres18) go test -count=1 ./...

bench: ## run the benchmarks
	go test -run=NONE -bench=. -benchmem ./...

fuzz: ## fuzz each target for FUZZTIME (60s)
	@for package in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			go test -run=NONE -fuzz="^$$target\$$" -fuzztime=$(FUZZTIME) $$package || exit; \
		done; \
	done

lint: ## gofmt, go vet, staticcheck
	@files=$$(gofmt -l .); test -z "$$files" || { echo "not formatted:" $$files; exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...

demo: ## show a report of leaks on a throw-away PostgreSQL
	go run ./cmd/baldur demo

ci: ## run everything that CI runs (Debian, as root)
	.ci/run
