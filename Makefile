# What a person does daily. `make demo` needs Python 3.11+ and nothing else.
PYTHON ?= python3
BIN := .venv/bin
CONFIG ?= configs/demo.yaml
MODEL ?= --all
KEYS ?= data/keys.txt

.PHONY: setup demo serve key test test-unit test-integration test-e2e test-clients lint hooks docs bench validate models models-pull lock clean

setup: .venv/.installed

.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "uv>=0.8,<1"
	VIRTUAL_ENV=.venv $(BIN)/uv pip sync --quiet --compile-bytecode requirements.lock
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --editable .
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
	$(BIN)/python -m graphs.launch configs/demo.yaml --then "$(BIN)/python benchmarks/overhead.py"

validate: setup
	$(BIN)/python -m graphs.validate $(CONFIG)

models: setup
	$(BIN)/python -m models.recipes.build

models-pull: setup
	$(BIN)/python -m engines.model_files $(MODEL)

lock:
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --extra dev pyproject.toml -o requirements.lock

clean:
	rm -rf .venv
