# The two commands of a fresh machine: `make demo` runs the whole story, `make test` all checks.

PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers
BIN := $(VENV)/bin
# What an installation is made of, besides Python files, which are used in place.
INSTALLED := pyproject.toml setup.py $(shell find csrc -path csrc/tests -prune -o \( -name '*.cpp' -o -name '*.h' \) -print)

.PHONY: demo test format lint types unit bench peers clean

demo: $(VENV)/core.done
	$(BIN)/moesaic demo

test: lint types unit

format: $(VENV)/dev.done
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/dev.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/dev.done
	$(BIN)/mypy

unit: $(VENV)/dev.done
	$(BIN)/pytest -n auto
	MOESAIC_ISA=none $(BIN)/pytest -n auto tests/nn tests/ops --ignore=tests/ops/gpu --ignore-glob='*/test_mixture*'

bench: $(VENV)/dev.done
	$(BIN)/moesaic bench train

# What the benchmarks measure in processes of their own, on the same torch, which comes first because DeepSpeed alone
# would take any; llama.cpp is built for this machine.
peers: $(PEERS)/deepspeed.done $(PEERS)/llama.done

clean:
	rm -rf $(VENV) $(PEERS) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/made.done:
	$(PYTHON) -c 'import sys; sys.exit("moesaic needs Python 3.11 or later, this is %d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/core.done: $(INSTALLED) | $(VENV)/made.done
	$(BIN)/pip install --quiet --editable .
	touch $@

# Not after core.done, whose installation this contains: the kernels take half a minute.
$(VENV)/dev.done: $(INSTALLED) | $(VENV)/made.done
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $(VENV)/core.done $@

$(PEERS)/made.done: pyproject.toml | $(VENV)/core.done
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet "torch==$$($(BIN)/python -c 'import torch; print(torch.__version__.split("+")[0])')" numpy safetensors
	touch $@

$(PEERS)/deepspeed.done: $(PEERS)/made.done
	$(PEERS)/bin/pip install --quiet deepspeed
	DS_ACCELERATOR=cpu $(PEERS)/bin/python -c 'import deepspeed.moe.sharded_moe'
	touch $@

# Minutes; without what it has for images.
$(PEERS)/llama.done: $(PEERS)/made.done
	CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" $(PEERS)/bin/pip install --quiet --no-binary llama-cpp-python "llama-cpp-python>=0.3.36,<0.4" gguf
	$(PEERS)/bin/python -c 'import gguf, llama_cpp'
	touch $@
