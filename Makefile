# Two commands do everything, set-up included: `make quickstart` and `make test`. Each can be run again at once.
#
# PYTHON       the interpreter of the virtual environment (3.10 to 3.13)
# TORCH_INDEX  address of a package index that has PyTorch's CPU build; empty: what pip finds
# VENV         where the virtual environment is made
# WORKERS      processes that run the tests, of one thread each
# EXTRAS       what is installed beside the package itself; EXTRAS=test,lint,rtx adds TensorRT-RTX and the tests that build with it

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
WORKERS ?= 2
EXTRAS ?= test,lint
BIN := $(VENV)/bin
comma := ,
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := torch>=2.10,<2.14
OLDEST := $(VENV)-oldest-triton
PYTEST := -m pytest --numprocesses $(WORKERS) --dist loadfile
OF_A_GPU := $(wildcard tests/runtime/test_native_*.py tests/runtime/test_tensorrt_*.py tests/runtime/test_engine_probes.py)
COMPILED_TESTS := tests/emulator tests/kernels/test_cases.py::test_compiled_for_an_emulated_gpu tests/kernels/test_aot.py::test_every_network_is_within_its_budget tests/runtime/test_native_emulated.py tests/runtime/test_tensorrt_plugin.py tests/engine/test_plugins_quick.py
KERNEL_TESTS := tests/kernels/test_aot.py tests/kernels/test_cases.py tests/ops/test_conv.py

.PHONY: quickstart test test-fast test-compiled test-oldest-triton test-avx2 lint format native wheels install clean

quickstart: install
	$(BIN)/vae-edge quickstart

# What takes times runs first, by itself.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m alone; alone=$$?; \
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m "not alone and not exhaustive" && exit $$alone

test-fast: install
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m "not slow and not alone and not exhaustive"

# What executes compiled kernels without a GPU, whole: with every kernel on every architecture, which CI leaves out.
test-compiled: install
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) $(COMPILED_TESTS)

# The kernels' tests once more, with the oldest Triton that is supported. Its interpreter wants NumPy below 2.4.
test-oldest-triton: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python $(PYTEST) -m "not exhaustive" $(KERNEL_TESTS)

# What depends on the processor once more, as on x86 with AVX2 and nothing beyond it.
test-avx2: install
	VAE_EDGE_CPU_ISA=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 \
	  $(BIN)/python $(PYTEST) -m "not alone" tests/runtime tests/exporting $(foreach file,$(OF_A_GPU),--ignore $(file))

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

native: install
	cmake -S . -B build -DPython3_EXECUTABLE=$(abspath $(BIN)/python)
	cmake --build build
	cd build && ctest --output-on-failure

# dist/: a pure wheel, and one for each processor with the native library in it. Needs gcc-aarch64-linux-gnu.
wheels: install
	kernels/native/make_wheels.sh $(BIN)/python dist

install: $(STAMP)

# PyTorch first, so that its index serves nothing else; the stamp is written last, so that a broken set-up is done again.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.10 to 3.13 is needed, $$($(PYTHON) --version) was found: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(PIP) install --quiet --progress-bar off --editable ".[$(EXTRAS)]"
	touch $@

$(OLDEST)/.installed: pyproject.toml Makefile
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet --progress-bar off \
	  $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet --progress-bar off \
	  "triton==3.6.*" "numpy<2.4" pillow safetensors onnx onnxruntime pytest pytest-timeout pytest-xdist hypothesis
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --editable .
	touch $@

clean:
	rm -rf build $(VENV) $(OLDEST)
