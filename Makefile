# Two commands matter to users: `make demo` and `make test`. Both set up what they need first.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
JOBS ?= $(shell nproc)
ARGS ?=

BIN := .venv/bin
CMAKE := $(BIN)/cmake
CTEST := $(BIN)/ctest
LOGS := build/logs
STEP := tools/step

export VIRTUAL_ENV := $(CURDIR)/.venv
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# Where setup unpacks packages that it cannot install; harmless while it does not exist.
DEPS := $(CURDIR)/.deps/usr
DEPS_LIB := $(DEPS)/lib/$(shell g++ -dumpmachine)
export CPATH := $(DEPS)/include$(if $(CPATH),:$(CPATH))
export LIBRARY_PATH := $(DEPS_LIB)$(if $(LIBRARY_PATH),:$(LIBRARY_PATH))
export LD_LIBRARY_PATH := $(DEPS_LIB)$(if $(LD_LIBRARY_PATH),:$(LD_LIBRARY_PATH))
export CMAKE_PREFIX_PATH := $(DEPS)$(if $(CMAKE_PREFIX_PATH),:$(CMAKE_PREFIX_PATH))

# Looked up when a recipe runs, after setup.
PYTHON_HEADERS = $(addprefix -DPython_INCLUDE_DIR=,$(shell ls -d $(DEPS)/include/python3.* 2>/dev/null))

# Where cmake/SmartspecCuda.cmake looks.
NVCC := $(or $(CUDACXX),$(shell command -v nvcc),$(wildcard $(CUDA_PATH)/bin/nvcc \
  $(CUDA_HOME)/bin/nvcc /usr/local/cuda/bin/nvcc))
CUDA_TARGETS := _core cuda_build_test cuda_device_tests bench_cuda_attention bench_cuda_verify

# configure PRESET EXTRA, build PRESET TARGETS
define configure
@$(STEP) "configuring $(1)" $(LOGS)/configure-$(1).log $(CMAKE) --preset $(1) $(PYTHON_HEADERS) $(2)
endef
define build
@$(STEP) "building $(1) with $(JOBS) jobs" $(LOGS)/build-$(1).log \
  $(CMAKE) --build build/$(1) -j $(JOBS) $(if $(2),--target $(2))
endef
define ctest
@$(STEP) --show "C++ tests, $(1)" $(LOGS)/ctest-$(1).log \
  $(CTEST) --test-dir build/$(1) --output-on-failure -j $(JOBS) $(2)
endef

.PHONY: help setup setup-test build build-tests demo test test-cpp test-python test-asan test-tsan \
  test-cuda test-wheel lint format stubs bench wheel summary clean distclean

help:
	@echo 'make demo         set up, build, and serve the shipped model pair; prints a table, writes a plot'
	@echo 'make test         set up, build, and run every test, C++ and Python'
	@echo
	@echo 'make setup        only install what building needs, into ./.venv (and ./.deps)'
	@echo 'make build        library, Python module'
	@echo 'make test-cpp | test-python | test-asan | test-tsan | test-cuda | test-wheel'
	@echo 'make lint         layer rules, clang-format, ruff, mypy, stubs;  make format: apply'
	@echo 'make stubs        write python/smartspec_core/_core/*.pyi anew after a change of the bindings'
	@echo 'make bench        build and run the microbenchmarks'
	@echo 'make wheel        dist/smartspec-*.whl'
	@echo 'make clean        remove build results;  make distclean: .venv and .deps as well'

setup:
	@$(PYTHON) tools/setup_env.py

setup-test:
	@$(PYTHON) tools/setup_env.py --tests

# The demo must build where GoogleTest is missing; a tree that has tests configured keeps them.
build: setup
	$(call configure,release,$(if $(wildcard build/release/CMakeCache.txt),,-DSMARTSPEC_TESTS=OFF))
	$(call build,release,_core)

build-tests: setup-test
	$(call configure,release,-DSMARTSPEC_TESTS=ON)
	$(call build,release,all all_verify_interface_header_sets)

demo: build
	@$(BIN)/smartspec demo $(ARGS)

test: test-cpp lint test-cuda test-python test-asan test-tsan test-wheel summary

test-cpp: build-tests
	$(call ctest,release)

test-python: build-tests
	@$(STEP) --show "Python tests" $(LOGS)/pytest.log $(BIN)/python -m pytest -q $(ARGS)

test-asan: setup-test
	$(call configure,asan)
	$(call build,asan)
	$(call ctest,asan)

test-tsan: setup-test
	$(call configure,tsan)
	$(call build,tsan,threaded_tests)
	$(call ctest,tsan,-L threads)

# Needs nvcc, and no GPU: everything builds without warnings, what is for a device included, no
# kernel spills unnoticed, and library and module say what they are where there is no driver.
# Kernels run emulated, in test-cpp, test-python and test-asan.
ifeq ($(NVCC),)
test-cuda:
	@echo '== CUDA build: skipped, no nvcc in CUDACXX, PATH, CUDA_PATH or /usr/local/cuda/bin'
else
test-cuda: setup-test
	$(call configure,cuda)
	$(call build,cuda,$(CUDA_TARGETS))
	@$(STEP) --show "registers and spills of the kernels" $(LOGS)/ptxas.log \
	  $(BIN)/python tools/ptxas_report.py build/cuda
	$(call ctest,cuda,-R cuda_build_test)
	@$(STEP) --show "Python operations, cuda" $(LOGS)/pytest-cuda.log \
	  env PYTHONPATH=build/cuda/pythonpath $(BIN)/python -m pytest -q tests/python/test_cuda_ops.py
	@$(STEP) --show "what it says of itself" $(LOGS)/info-cuda.log \
	  env PYTHONPATH=build/cuda/pythonpath $(BIN)/python -m smartspec info
endif

# Built in build/release, where everything is compiled already.
test-wheel: build-tests
	@$(STEP) "wheel: build, install into an empty folder, import" $(LOGS)/wheel.log \
	  env CMAKE_ARGS="$(PYTHON_HEADERS)" tools/check_wheel build/release build/wheel

lint: build-tests
	@$(STEP) "lint: layers, clang-format, ruff, mypy, stubs" $(LOGS)/lint.log tools/lint

format: setup-test
	@tools/lint --fix

stubs: build-tests
	@$(BIN)/python tools/check_stubs.py --write

summary:
	@tools/summary $(LOGS)

bench: build-tests
	@for program in $$(find build/release/bench/cpp -maxdepth 1 -type f -executable | sort); do \
	  echo "== $$program"; $$program || exit; done
	@for program in decode_vs_transformers suffix_vs_reference; do \
	  echo "== $$program"; $(BIN)/python bench/python/$$program.py || exit; done

wheel: build
	@$(STEP) "packing the wheel" $(LOGS)/wheel.log env CMAKE_ARGS="$(PYTHON_HEADERS)" \
	  $(BIN)/python -m pip wheel . --no-build-isolation --no-deps -w dist \
	  --config-settings=build-dir=build/release
	@ls -l dist/*.whl

clean:
	rm -rf build dist demo_output

distclean: clean
	rm -rf .venv .deps
