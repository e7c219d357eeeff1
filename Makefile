# Each target sets up what it needs in .venv; a second run only checks time stamps.
#   make test ARGS="-k noise"      arguments for the program behind a target
#   make test TORCH=torch          another torch requirement (default: the one tested here)
#   make test PYTHON=python3.12    another interpreter for .venv

PYTHON ?= python3
TORCH ?= torch==2.13.0
# The one tested here. A CUDA build of torch brings its own, and no other fits it.
TRITON := triton==3.9.*; sys_platform == "linux"
ARGS ?=
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -qq
NATIVE := $(shell find csrc -type f 2>/dev/null)
FORMATTED := $(filter %.h %.cpp %.cu %.cuh,$(NATIVE)) \
  $(wildcard benchmarks/*.cpp benchmarks/*/*.cpp) \
  $(wildcard $(addprefix tests/cuda_on_host/,*.h *.cpp *.cu include/*.h))

export GENKERN_WERROR ?= 1

.PHONY: help demo chapter distributed docs test cuda-on-host bench profile gpu fuzz sanitize soak \
  large lint format cuda gpu-static exhaustive report compat clean FORCE
.DELETE_ON_ERROR:

help:
	@echo "make demo        train models of digits with genkern and with plain PyTorch; write a page"
	@echo "make chapter     reproduce a textbook chapter's figures, tables and claims; write a page"
	@echo "make distributed train on 1, 2 and 4 processes and compare losses and noise"
	@echo "make docs        build the documentation's site, docs/_build/html/index.html"
	@echo "make test        run the tests"
	@echo "make cuda-on-host  run the CUDA kernels on the CPU, with checks of memory and races"
	@echo "make bench       run the benchmarks"
	@echo "make gpu         run the tests and benchmarks that need a GPU; write docs/evidence/gpu.json"
	@echo "make profile     profile the CPU kernels (instructions only where valgrind is)"
	@echo "make lint        check format, style and types"
	@echo "make format      format the sources"
	@echo "make cuda        compile the CUDA library (needs nvcc, no GPU)"
	@echo "make gpu-static  print what the GPU kernels compile to and the speed that follows"
	@echo "make exhaustive  tests of minutes: all 2^32 words, sanitizers, every GPU target"
	@echo "make report      measure and test everything at length, write docs/report.md (two hours)"
	@echo "make fuzz        100,000 random and as many hostile calls (ten minutes; ARGS=--quick: 2,000)"
	@echo "make sanitize    tests and fuzzing under ASan, UBSan and TSan (half an hour)"
	@echo "make soak        train for an hour and watch the memory (ARGS=\"--minutes 5\")"
	@echo "make large       tensors of more than 2^31 and 2^32 elements (20 GB)"
	@echo "make compat      try one wheel under the oldest torch and the newest (gigabytes)"
	@echo "make clean       remove .venv and everything built"

demo: .venv/installed
	@$(PY) -m examples.digits $(ARGS)

chapter: .venv/installed
	@$(PY) -m examples.chapter $(ARGS)

distributed: .venv/installed
	@$(PY) -m examples.distributed $(ARGS)

# A page's pictures are drawn, and a reference that leads nowhere is an error.
docs: .venv/installed
	@$(PY) -m sphinx --quiet --fail-on-warning --keep-going -d docs/_build/doctrees $(ARGS) \
	  docs docs/_build/html
	@echo "make: the site is docs/_build/html/index.html"

# A process a core, each with one thread (threads that wait for one another would wait for tests), a
# file at a time, since some prepare for minutes what all their tests read.
test: .venv/installed
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile $(ARGS)

cuda-on-host: .venv/installed
	@PATH="$(CURDIR)/.venv/bin:$$PATH" nice $(PY) -m benchmarks.cuda_on_host --quick $(ARGS)

bench: .venv/installed
	@$(PY) -m benchmarks $(ARGS)

gpu: .venv/installed
	@$(PY) -m benchmarks.gpu $(ARGS)

profile: .venv/installed
	@$(PY) -m benchmarks.profile $(ARGS)

exhaustive: .venv/installed
	@$(PY) -m pytest -m exhaustive $(ARGS)

report: .venv/installed
	@$(PY) -m benchmarks.evidence $(ARGS)

large: .venv/installed
	@$(PY) -m pytest -m large $(ARGS)

fuzz: .venv/installed
	@OMP_NUM_THREADS=1 $(PY) -m benchmarks.fuzz $(ARGS)

sanitize: .venv/installed
	@$(PY) -m benchmarks.sanitize $(ARGS)

soak: .venv/installed
	@$(PY) -m benchmarks.soak $(ARGS)

lint: .venv/installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/clang-format --dry-run -Werror $(FORMATTED)

format: .venv/installed
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .
	.venv/bin/clang-format -i $(FORMATTED)

# Compiles without installing: only a CUDA build of torch loads the library, and there `make test`
# has already built it.
cuda: .venv/requirements
	@GENKERN_BUILD=cuda $(PY) setup.py --quiet build_py --build-lib build/cuda
	@ls -l build/cuda/genkern/libgenkern_cuda.so

gpu-static: cuda .venv/installed
	@$(PY) -m benchmarks.gpu_static $(ARGS)

# The wheel of this machine in an environment of its own for each torch of COMPAT. By hand: PyPI's
# builds of torch bring CUDA with them.
COMPAT ?= torch==2.10.* torch
compat: .venv/installed
	@rm -rf build/compat
	@$(PIP) wheel --no-build-isolation --no-deps --wheel-dir build/compat .
	@set -e; for torch in $(COMPAT); do \
	  rm -rf build/compat/env; $(PYTHON) -m venv build/compat/env; \
	  build/compat/env/bin/pip --disable-pip-version-check -qq install "$$torch" build/compat/*.whl; \
	  (cd build/compat && env/bin/python ../../tests/smoke.py); \
	done

clean:
	rm -rf .venv build dist *.egg-info genkern_host*.so genkern/*.so genkern/_build.json
	rm -rf .hypothesis .pytest_cache .mypy_cache .ruff_cache .benchmarks demo_output chapter_output docs/_build
	find . -name __pycache__ -type d -exec rm -rf {} +

# --- set-up -------------------------------------------------------------------------------------

.venv/pyvenv.cfg:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "make: $(PYTHON) not found: install Python >= 3.10 or set PYTHON" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make: $(PYTHON) is older than 3.10: set PYTHON to a newer one" >&2; exit 1; }
	@$(PYTHON) -m venv .venv >/dev/null || { rm -rf .venv; \
	  echo "make: $(PYTHON) cannot make a virtual environment (Debian: apt install python3-venv)" >&2; exit 1; }

# Written only when the requirement changes, so that a new TORCH= is installed and an old one is not.
.venv/torch: .venv/pyvenv.cfg FORCE
	@echo '$(TORCH)' | cmp -s - $@ || echo '$(TORCH)' > $@

.venv/requirements: .venv/torch
	@echo "make: installing $(TORCH) and the build tools into .venv"
	@$(PIP) install '$(TORCH)' setuptools cmake ninja pybind11
	@$(PY) -c 'import importlib.util as u; exit(not u.find_spec("triton"))' || $(PIP) install '$(TRITON)'
	@touch $@

# Without isolation the build tools stay where CMake found them, and a rebuild is incremental.
.venv/installed: .venv/requirements pyproject.toml setup.py CMakeLists.txt $(NATIVE)
	@echo "make: installing genkern[dev] into .venv, editable"
	@$(PIP) install --no-build-isolation --editable '.[dev]'
	@$(PIP) install --no-deps denoising-diffusion-pytorch==2.3.4 # it would replace torch
	@$(PY) -c 'import json; [print("genkern:", n) for n in json.load(open("genkern/_build.json"))["notes"]]'
	@touch $@
