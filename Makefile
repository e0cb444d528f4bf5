# Needs python3 (3.11 to 3.13) and make, nothing else. `make help` lists the targets.

PYTHON ?= python3
# If PYTHON is given and its version differs from that of .venv, it gets a separate environment, e.g. .venv-3.13, so
# that neither replaces the other.
MADE_WITH := $(shell sed -n 's/^version *= *\([0-9]*\.[0-9]*\).*/\1/p' .venv/pyvenv.cfg 2> /dev/null)
VERSION_OF := import sys; print("%d.%d" % sys.version_info[:2])
NAMED := $(if $(filter-out file,$(origin PYTHON)),$(shell $(PYTHON) -c '$(VERSION_OF)' 2> /dev/null))
VENV := .venv$(if $(MADE_WITH),$(if $(filter-out $(MADE_WITH),$(NAMED)),-$(NAMED)))
BIN := $(VENV)/bin
RUN := $(BIN)/python
# Processes that run the tests. A file's tests stay in one process: they share fixtures that are slow to make.
WORKERS ?= 2
SPREAD := --dist loadfile --no-loadscope-reorder

# The caller's environment or module path must not leak into ours.
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME

# Stamps are named by content, not by time: a fresh checkout, a switched branch or a copied tree reuses the environment
# exactly as long as the lock file and the package's metadata are the same. They are written last, so a set-up that
# failed or was interrupted starts again.
MARK := $(VENV)/.made-by-make
LOCKED := $(VENV)/.locked-$(firstword $(shell cksum < requirements.lock))
INSTALLED := $(VENV)/.installed-$(firstword $(shell cksum < requirements.lock))-$(firstword $(shell cksum < pyproject.toml))
TORCH := tests/requirements-torch.txt
BROWSER := tests/requirements-browser.txt
DOCS := docs/requirements.txt
BROWSER_INSTALLED := $(VENV)/.browser-$(firstword $(shell cksum < requirements.lock))-$(firstword $(shell cksum < $(BROWSER)))
DOCS_INSTALLED := $(VENV)/.docs-$(firstword $(shell cksum < requirements.lock))-$(firstword $(shell cksum < $(DOCS)))
TORCH_INSTALLED := $(VENV)/.torch-$(firstword $(shell cksum < requirements.lock))-$(firstword $(shell cksum < $(TORCH)))
TPU_INSTALLED := $(VENV)/.tpu-$(firstword $(shell cksum < requirements.lock))
# The version that the installed JAX asks for, e.g. libtpu==0.0.42.*.
LIBTPU := import importlib.metadata as m; print(next(r.split(";")[0] for r in m.requires("jax") if r.startswith("libtpu")))

# Options of pip when it installs PyTorch for `make test-torch`. On Linux, PyPI's build includes several GB of CUDA. The
# CPU-only build suffices:
#   make test-torch PIP_TORCH="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_TORCH ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env demo test test-quick test-optimised test-machines test-cluster test-slurm test-slow test-torch test-browser test-tpu gpu-check lint
.PHONY: format parity docs notebook bench embedded lock clean distclean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

env: $(INSTALLED) ## Create .venv from requirements.lock (once; CPU only)

$(LOCKED): | check-python
	@if [ -e $(VENV) ] && [ ! -e $(MARK) ]; then \
	  echo "error: $(VENV) was not made by this Makefile, so it is left unchanged. Move or delete it." >&2; \
	  exit 1; fi
	@echo "Creating $(VENV) from requirements.lock ..."
	@rm -rf $(VENV) && mkdir $(VENV) && touch $(MARK)
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes -r requirements.lock
	@touch $@

$(INSTALLED): $(LOCKED)
	@$(RUN) -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/.installed-*
	@touch $@

.PHONY: check-python
check-python:
	@command -v $(PYTHON) > /dev/null 2>&1 || { \
	  echo "error: $(PYTHON) not found. Install Python 3.11, 3.12 or 3.13, or name it: make PYTHON=python3.12 ..." >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "error: $$($(PYTHON) --version 2>&1) is not supported: Python 3.11, 3.12 or 3.13 is needed." \
	       "Name one: make PYTHON=python3.12 ..." >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2> /dev/null || { \
	  echo "error: $(PYTHON) lacks the venv module (on Debian and Ubuntu: apt-get install python3-venv)." >&2; \
	  exit 1; }

demo: env ## Reconstruct the bundled clip and print metrics
	$(RUN) -m experiments.reconstruct --seq=demo

test: env ## Run the tests
	$(RUN) -m pytest -q -n $(WORKERS) $(SPREAD)

test-quick: env ## Run a few tests of every part (tests/quick.txt), e.g. with PYTHON=python3.13
	$(RUN) -m pytest -q -n $(WORKERS) $(SPREAD) @tests/quick.txt

# Nearly all of the tests' time is compilation, which `make test` cuts short: see tests/flags.py.
test-optimised: env ## Run the tests with full XLA optimisation, as for users
	EASI3R_TESTS_OPTIMISED=1 $(RUN) -m pytest -q -n $(WORKERS) $(SPREAD)

# MACHINES: some of those listed by `python -m tests.machines --list`. TIMES: rounds.
test-machines: env ## Run numerical tests under emulated machines: instructions, threads, order, load (hours)
	$(RUN) -m tests.machines --workers=$(WORKERS) $(if $(TIMES),--times=$(TIMES)) $(MACHINES)

test-cluster: env ## Kill workers, nodes and the driver of a Ray cluster at work (half an hour)
	$(RUN) -m pytest -q -m slow tests/apps/test_cluster.py

test-slurm: env ## Run deploy/slurm.sh on a Slurm cluster of three nodes on this machine (Linux, root; installs slurm-wlm)
	@PATH=$$PATH:/usr/sbin:/sbin; command -v slurmctld slurmd munged ip > /dev/null || { \
	  echo "Installing slurm-wlm and munge ..."; \
	  apt-get update -qq && apt-get install -qq -y --no-install-recommends slurm-wlm munge iproute2 > /dev/null; }
	PATH=$$PATH:/usr/sbin:/sbin $(RUN) -m pytest -q -m slurm tests/apps/test_slurm.py

test-slow: env ## Run the heavy checks
	$(RUN) -m pytest -q -m slow -n $(WORKERS) $(SPREAD)

# One thread: on networks this small, PyTorch's threads wait for each other, on a busy machine a hundred times longer
# than they compute.
test-torch: env $(TORCH_INSTALLED) ## Run the tests that need PyTorch (installs it; see PIP_TORCH in the Makefile)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -m torch

$(TORCH_INSTALLED): | $(INSTALLED)
	@echo "Installing PyTorch into $(VENV) ..."
	@$(RUN) -m pip --disable-pip-version-check install --quiet -r $(TORCH) $(PIP_TORCH)
	@rm -f $(VENV)/.torch-*
	@touch $@

test-browser: env $(BROWSER_INSTALLED) chromium ## Run the tests in Chromium, and behind nginx (installed if that needs no password; skipped without)
	$(RUN) -m pytest -q -m browser

$(BROWSER_INSTALLED): | $(INSTALLED)
	@$(RUN) -m pip --disable-pip-version-check install --quiet --no-deps -r $(BROWSER)
	@rm -f $(VENV)/.browser-*
	@touch $@

.PHONY: chromium
chromium:
	@PATH=$$PATH:/usr/sbin command -v nginx > /dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && \
	  apt-get update -qq && apt-get install -qq -y --no-install-recommends nginx-light > /dev/null; } || \
	  echo "nginx not found: its tests will be skipped." >&2
	@for name in "$$CHROMIUM" chromium chromium-browser google-chrome; do \
	  [ -n "$$name" ] && command -v "$$name" > /dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  echo "Installing chromium ..."; \
	  apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium > /dev/null && exit 0; fi; \
	echo "Chromium not found (on Debian: apt-get install chromium): its tests will be skipped." >&2

# The TPU's compiler runs on a CPU. It is beside the environment, not in it, where JAX would look for a TPU each time.
test-tpu: env $(TPU_INSTALLED) ## Compile every stage of the released network for TPUs, lower it for GPUs (hours; no TPU needed)
	PYTHONPATH=$(VENV)/tpu $(RUN) -m pytest -q tests/apps/test_compile_check.py
	$(RUN) -m experiments.compile_check --platform=gpu
	PYTHONPATH=$(VENV)/tpu $(RUN) -m experiments.compile_check --platform=tpu $(TPU)

$(TPU_INSTALLED): | $(INSTALLED)
	@echo "Installing the TPU's compiler into $(VENV)/tpu ..."
	@$(RUN) -m pip --disable-pip-version-check install --quiet --no-deps --upgrade --target $(VENV)/tpu \
	  "$$($(RUN) -c '$(LIBTPU)')"
	@rm -f $(VENV)/.tpu-*
	@touch $@

# The environment is for CPUs: add the GPU's part first, e.g. .venv/bin/python -m pip install -e '.[cuda12]'.
gpu-check: env ## Measure everything that needs an NVIDIA GPU, in nine minutes (GPU=--small: try the script on a CPU)
	$(RUN) -m tests.gpu_check --output=runs/gpu_check $(GPU)

# Not with --quiet: warnings that are not shown do not count.
docs: env $(DOCS_INSTALLED) ## Build the documents as a site, site/index.html; broken links are errors
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

$(DOCS_INSTALLED): | $(INSTALLED)
	@$(RUN) -m pip --disable-pip-version-check install --quiet --no-deps -r $(DOCS)
	@rm -f $(VENV)/.docs-*
	@touch $@

notebook: env ## Run docs/quickstart.ipynb and keep what it displays
	$(RUN) -m tests.notebook

lint: env ## Check rules, format and types
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(RUN) -m pyright --pythonpath $(RUN)

format: env ## Apply rules and format
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

parity: env ## Compare every stage with the reference numbers
	$(RUN) -m experiments.parity --golden=tests/golden

# On an idle machine, with all changes committed: the page names the commit.
bench: env ## Measure everything in docs/benchmarks.md and write it there
	$(RUN) -m experiments.benchmark --page=docs/benchmarks.md

# After an interruption it resumes; the weights are replaced when it is done.
embedded: env ## Train the small network that ships with the package (hours; call again to resume)
	$(RUN) -m experiments.train --preset=embedded --output=runs/embedded \
	  $(if $(wildcard runs/embedded/states/step_*),--resume)
	$(RUN) -m experiments.train --preset=embedded --checkpoint=runs/embedded/model --output=runs/embedded2 \
	  --seed=1 --steps=3600 --learning_rate=1.5e-3 $(if $(wildcard runs/embedded2/states/step_*),--resume)
	$(RUN) -m convert --source=runs/embedded2/model --output=easi3r_jax/assets/model --to=official --half
	$(RUN) -m experiments.calibrate --output=easi3r_jax/assets/model/readout.json

# Without UPGRADE, versions that still satisfy the bounds are kept.
lock: env ## Make requirements.lock from pyproject.toml (UPGRADE=1: newest versions)
	$(RUN) -m uv pip compile --quiet --universal --python-version 3.11 --extra dev --generate-hashes \
	  $(if $(UPGRADE),--upgrade) --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

clean: ## Remove caches and build folders
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean ## Remove .venv too, and those of other Pythons
	rm -rf .venv .venv-3.*
