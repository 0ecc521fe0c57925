# Two commands do everything: `make up` and `make test`. The rest is for those who change Weft.
SHELL := /bin/bash
PYTHON ?= python3.11
BIN := .venv/bin
PAGE := servers/weftd/edge/page/index.html
UV := $(BIN)/uv pip install -q --python $(BIN)/python
# A program that asks for a password or shows a colour has no one to ask in CI.
export npm_config_update_notifier = false

# The models' own environment: Triton's stub needs numpy below 2, and the mesh has 2.
MODELS := .venv/models/bin/python
UV_MODELS := $(BIN)/uv pip install -q --python $(MODELS) --no-deps --require-hashes

.PHONY: up install triton llm s3 test check generate clean

## installs what is needed and runs the mesh on http://127.0.0.1:8080
up: install
	@exec $(BIN)/weft up

install: .venv/.base $(PAGE)

## installs NVIDIA's Triton and what its models need, for `weft up --triton`
triton: install .venv/models/.triton

## installs what a language model on Triton or in process needs too (torch: 5 GB)
llm: triton .venv/models/.llm

## installs what a model repository in an object store needs: WEFT_TRITON_REPOSITORY=s3://…
s3: install .venv/.s3

## installs what the tests need, real servers included, and runs them all
test: install .venv/.dev .venv/models/.triton .venv/models/.llm
	@scripts/test.sh

## what is fast: contract, style, types, architecture, fresh stubs
check: .venv/.dev clients/web/node_modules/.installed
	@scripts/check.sh

generate: .venv/.dev clients/web/node_modules/.installed
	@scripts/generate.sh

.venv/bin/uv: requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Weft needs Python 3.11: install it, or name it with make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

.venv/.base: .venv/bin/uv requirements/base.txt clients/python/pyproject.toml servers/pyproject.toml
	@echo "Installing Python packages …"
	@$(UV) --no-deps --require-hashes --compile-bytecode -r requirements/base.txt
	@$(UV) --no-deps -e clients/python -e servers
	@touch $@

.venv/.s3: .venv/.base requirements/s3.txt
	@$(UV) --no-deps --require-hashes -r requirements/s3.txt
	@touch $@

.venv/.dev: .venv/.base requirements/dev.txt
	@echo "Installing what the tests need …"
	@$(UV) --no-deps --require-hashes -r requirements/dev.txt
	@touch $@

.venv/models/.triton: .venv/bin/uv requirements/triton.txt
	@echo "Installing Triton …"
	@test -x $(MODELS) || $(PYTHON) -m venv --without-pip .venv/models
	@$(UV_MODELS) -r requirements/triton.txt
	@touch $@

.venv/models/.llm: .venv/models/.triton requirements/llm.txt
	@echo "Installing what language models need …"
	@$(UV_MODELS) -r requirements/llm.txt
	@touch $@

clients/web/node_modules/.installed: clients/web/package.json clients/web/package-lock.json
	@echo "Installing the page's packages …"
	@cd clients/web && npm ci --silent --no-fund --no-audit
	@touch $@

$(PAGE): clients/web/node_modules/.installed $(shell find clients/web/src clients/web/public clients/web/*.html clients/web/*.ts clients/web/*.json -type f 2>/dev/null)
	@echo "Building the page …"
	@cd clients/web && npm run --silent build
	@touch $@

clean:
	rm -rf .venv clients/web/node_modules servers/weftd/edge/page .mypy_cache .ruff_cache .pytest_cache
