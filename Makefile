# What a person does daily. `make demo` needs Python 3.11+ and nothing else.
PYTHON ?= python3
BIN := .venv/bin
CONFIG ?= configs/demo.yaml
MODEL ?= --all
KEYS ?= data/keys.txt

.PHONY: setup demo serve key test test-unit test-integration test-e2e test-clients lint hooks docs bench validate models models-pull lock clean

# GPU=1 installs what Whisper and emotions need on a GPU, TORCH=cpu torch's build without CUDA. What
# is installed stays so until one of them is given.
INSTALLED := $(patsubst .venv/.installed-%,%,$(wildcard .venv/.installed-*))
ifndef GPU
GPU := $(if $(filter 1-$(or $(TORCH),default),$(INSTALLED)),1,0)
endif
TORCH ?= $(if $(filter $(GPU)-cpu,$(INSTALLED)),cpu,default)
VARIANT := $(GPU)-$(TORCH)
ifeq ($(filter 0-default 1-default 0-cpu,$(VARIANT)),)
$(error GPU is 0 or 1, TORCH is default or cpu; GPU=1 needs the CUDA build of torch)
endif
LOCK := requirements$(if $(filter 1,$(GPU)),-gpu).lock
UV := VIRTUAL_ENV=.venv $(BIN)/uv

setup: .venv/.installed-$(VARIANT)

.venv/.installed-$(VARIANT): $(LOCK) pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "uv>=0.8,<1"
	rm -f .venv/.installed*
ifeq ($(TORCH),cpu)
	# The hashes of the lock are of the CUDA build: torch and torchaudio come without.
	sed -E -e '/^nvidia-ml-py==/b' -e '/^(torch|torchaudio|triton)==|^(nvidia|cuda)-/,/^    # via/d' \
		$(LOCK) > .venv/others.lock
	$(UV) pip sync --quiet --compile-bytecode .venv/others.lock
	sed -nE 's/^((torch|torchaudio)==[^ ]+).*/\1/p' $(LOCK) > .venv/torch.txt
	$(UV) pip install --quiet --compile-bytecode --no-deps --torch-backend=cpu -r .venv/torch.txt
else
	$(UV) pip sync --quiet --compile-bytecode $(LOCK)
endif
	$(UV) pip install --quiet --no-deps --editable .
	touch $@

demo: setup
	$(BIN)/python -m graphs.launch configs/demo.yaml --then "$(BIN)/python clients/demo.py"

serve: setup
	$(BIN)/python -m graphs.launch $(CONFIG)

key: setup
	$(BIN)/python -m api.auth.key_file $(KEYS)

# Unit tests, then e2e tests, run beside the integration tests.
test: setup
	$(BIN)/python -m pytest -n 2

test-unit test-integration test-e2e: setup
	$(BIN)/python -m pytest -m $(@:test-%=%)

test-clients: setup
	SPEECHGRAPH_TEST_CLIENTS=1 $(BIN)/python -m pytest tests/e2e/test_other_clients.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m graphs.validate serve_config.yaml configs/demo.yaml configs/cpu.yaml configs/gpu.yaml

docs: setup
	$(BIN)/python -m docs.settings_page

hooks: setup
	$(BIN)/pre-commit install

bench: setup
	RAY_SERVE_ENABLE_HA_PROXY=1 RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S=1 \
		$(BIN)/python -m graphs.launch configs/demo.yaml --then "$(BIN)/python -m benchmarks.overhead"

validate: setup
	$(BIN)/python -m graphs.validate $(CONFIG)

models: setup
	$(BIN)/python -m models.recipes.build

models-pull: setup
	$(BIN)/python -m engines.model_files $(MODEL)

lock:
	$(COMPILE) --extra dev pyproject.toml -o requirements.lock
	$(COMPILE) --extra dev --extra gpu --overrides requirements-gpu.overrides \
		--constraint requirements.lock --no-annotate pyproject.toml -o requirements-gpu.lock

COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header

clean:
	rm -rf .venv
