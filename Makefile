# Two commands do everything on a fresh machine: `make demo` and `make test`. All here make .venv when it is not there.

PYTHON ?= python3
VENV ?= .venv
# The pair that the tests run with; the library itself takes torch >= 2.11.
TORCH ?= torch==2.14.1 torchaudio==2.11.0

# The oldest that the library takes; torch 2.11 comes with triton 3.6.
FLOOR_PYTHON ?= python3.10
FLOOR_TORCH ?= torch==2.11.0 torchaudio==2.11.0

BIN := $(VENV)/bin
BUILT_FROM := setup.py pyproject.toml $(wildcard csrc/*/*.* csrc/include/*/*.*)

.PHONY: demo test test-fast test-floor all-tests bench gpu-check info clean

demo: $(VENV)/installed
	$(BIN)/abckd-dns demo

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m benchmarks.run --quick --check
	$(BIN)/python -m pytest -n 2 --dist loadfile

# What most faults are found by; tests/fast.py says why.
test-fast: $(VENV)/installed
	$(BIN)/python tests/fast.py -n 2 --dist loadfile

# All tests with the oldest torch, triton and Python, in a copy of the tree: the extension is built for that torch.
test-floor:
	@command -v $(FLOOR_PYTHON) || \
	  echo "test-floor: no $(FLOOR_PYTHON) here, the oldest Python that is supported; $(PYTHON) stands in for it." \
	  "Another place: make test-floor FLOOR_PYTHON=/path/to/python3.10"
	rm -rf build/floor/tree && mkdir -p build/floor/tree
	git ls-files -z | xargs -0 cp --parents -t build/floor/tree
	$(MAKE) -C build/floor/tree all-tests VENV=$(CURDIR)/build/floor/venv TORCH="$(FLOOR_TORCH)" \
	  PYTHON=$$(command -v $(FLOOR_PYTHON) || command -v $(PYTHON))

all-tests: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.run

gpu-check: $(VENV)/installed
	$(BIN)/python -m benchmarks.gpu_check

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
