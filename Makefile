# Everything a developer or a build machine does here. `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

CACHE := $(or $(SPACELIFT_DEV_CACHE),$(HOME)/.cache/spacelift-launcher)
# The project's programs first: .venv's, then an opa that was built for it.
export PATH := $(CURDIR)/.venv/bin:$(CACHE)/bin:$(PATH)
# Further arguments for pytest, as in: make test-fast ARGS='-k masking'
ARGS ?=
# Tests run in several processes: most of them wait, for an engine, a server, a
# program. PROCESSES=0 runs all of them in one, for a debugger.
PROCESSES ?= 4
PYTEST := pytest --numprocesses=$(PROCESSES) --dist=loadfile --no-loadscope-reorder

.PHONY: help
help: ## list what there is
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | \
	  while IFS='|' read -r name text; do printf '  %-13s %s\n' "$$name" "$$text"; done

.PHONY: demo
demo: setup ## show the launcher at work on this machine (KEEP=1 leaves it running)
	@$(if $(KEEP),scripts/engine up >/dev/null)
	@scripts/with-engine python -m examples.demo.demo $(if $(KEEP),--keep)

.PHONY: setup-python
setup-python:
	@scripts/setup-python

.PHONY: setup
setup: setup-python ## install what the demo needs: Python packages, opa, engine, runner image
	@scripts/setup-opa >/dev/null
	@scripts/setup-runner-image

.PHONY: setup-test
setup-test: setup ## install what the tests need on top
	@scripts/setup-test-services
	@scripts/setup-helm >/dev/null
	@scripts/setup-image
	@scripts/setup-systemd-image

.PHONY: test
test: setup-test lint types ## lint, types and every test, against real services
	@scripts/with-engine $(PYTEST) $(ARGS)

.PHONY: test-fast
test-fast: setup-python ## the tests that need nothing but Python, in half a minute
	@$(PYTEST) -m 'not services and not processes' $(ARGS)

.PHONY: test-helm
test-helm: setup-python ## the chart: lint, golden files, schemas of Kubernetes
	@scripts/setup-opa >/dev/null
	@scripts/setup-helm >/dev/null
	@$(PYTEST) tests/helm $(ARGS)

.PHONY: golden
golden: setup-python ## render the chart's golden files anew; read the difference
	@scripts/setup-helm >/dev/null
	@PYTHONPATH=tests python -m support.chart

.PHONY: image
image: ## build the image of launcher and control plane, and the runner image
	@scripts/setup-image
	@scripts/setup-runner-image

.PHONY: sbom
sbom: setup-python image ## bills of materials of both images, in dist/sbom
	@scripts/sbom

.PHONY: dist
dist: setup-python ## wheel and source distribution, in dist
	@rm -f dist/*.whl dist/*.tar.gz
	@python -m build --no-isolation
	@twine check --strict dist/*.whl dist/*.tar.gz

.PHONY: test-systemd
test-systemd: setup ## the units, on a machine that boots (part of `make test`)
	@scripts/setup-test-services
	@scripts/setup-systemd-image
	@scripts/with-engine pytest tests/systemd $(ARGS)

.PHONY: lint
lint: setup-python ## ruff, codespell, import-linter, shellcheck, hadolint
	@ruff check .
	@ruff format --check .
	@git ls-files -z --cached --others --exclude-standard | xargs -0 codespell
	@lint-imports
	@shellcheck --external-sources $(filter-out scripts/document-settings,$(wildcard scripts/*)) .ci/run \
	  $(wildcard launcher/adapters/engines/*.sh) image/collect image/trim \
	  systemd/install systemd/network systemd/power-off examples/ec2/user-data
	@hadolint --failure-threshold style Dockerfile runner-image/Dockerfile

.PHONY: types
types: setup-python ## mypy, strict
	@mypy

.PHONY: conformance
conformance: setup-python ## OPA's own cases through the engine that judges runs
	@scripts/setup-opa >/dev/null
	@python -m tests.conformance

.PHONY: chaos
chaos: setup ## kill, cut off and fill up everything over 100 runs, count losses (root)
	@PYTHONPATH=tests python -m tests.chaos $(ARGS)

.PHONY: bench
bench: setup ## measure, and print the numbers (ARGS=logs for one group)
	@scripts/setup-test-services
	@PYTHONPATH=tests scripts/with-engine python -m benchmarks $(ARGS)

.PHONY: clean
clean: ## remove what was made here (not the cache outside, see scripts/engine)
	@find runner-image/tools image/certificates -type f ! -name .gitignore -delete
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
