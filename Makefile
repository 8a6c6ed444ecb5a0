# Two commands do everything on a fresh machine: `make demo` and `make test`. Both make .venv when it is not there.

PYTHON ?= python3
VENV ?= .venv
# The pair that the tests run with; the library itself takes torch >= 2.11.
TORCH ?= torch==2.14.1 torchaudio==2.11.0

BIN := $(VENV)/bin
BUILT_FROM := setup.py pyproject.toml $(wildcard csrc/*/*.* csrc/include/*/*.*)

# What is not installed: abckd_verify, which benchmarks and tests import.
export PYTHONPATH := $(CURDIR)/python$(if $(PYTHONPATH),:$(PYTHONPATH))

.PHONY: demo test bench gpu-check info clean

demo: $(VENV)/installed
	$(BIN)/abckd-dns demo

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m benchmarks.run --quick --check
	$(BIN)/python -m pytest -n 2 --dist loadfile

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.run

gpu-check: $(VENV)/installed
	$(BIN)/python -m abckd_verify.gpu_check

info: $(VENV)/installed
	$(BIN)/python -m abckd_kernels.info

# torch first: the extension is built with the torch that will load it.
$(VENV)/installed: $(BUILT_FROM)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info abckd_kernels/_C*.so
