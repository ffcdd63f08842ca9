# Each target sets up what it needs: a virtual environment in .venv, with the versions of
# constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
# setuptools warns about folders with the package's name; see .venv/python.
INSTALL = PYTHONWARNINGS='ignore:Editable installation' $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo environments test container chaos check docs fuzz format lock dist clean

help: ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: .venv/demo ## Train, export, verify and benchmark on handwritten digits (about 3 minutes)
	$(BIN)/resdeploy demo --force

environments: .venv/dev ## Download the environments of some tests: aarch64, Python 3.10 to 3.13
	$(BIN)/python -m tests.aarch64.userland
	$(BIN)/python -m tests.pythons.environments

test: .venv/dev ## Run all tests in parallel
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder

container: .venv/dev ## Build the image for CPUs with podman, and test it (as root, with debootstrap and runc)
	$(BIN)/python -m tests.deploy.image
	RESDEPLOY_IMAGE_IS_BUILT=1 $(BIN)/python -m pytest tests/deploy/test_docker.py

chaos: .venv/dev ## Kill, starve and race commands, and servers that reload (about an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.chaos
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.reloads

check: .venv/dev ## Check format, lint, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/basedpyright
	$(BIN)/lint-imports

docs: .venv/docs ## Build the documentation as pages to read without a network: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build # with --quiet, it would ignore warnings
	@echo 'open build/site/index.html'

FUZZ_SECONDS ?= 7200
TARGETS = $(notdir $(wildcard tests/fuzz/corpus/*))
fuzz: .venv/dev ## Search for inputs that break a parser: FUZZ_SECONDS for each of TARGETS
	$(INSTALL) atheris
	for target in $(TARGETS); do \
	  $(BIN)/python -m tests.fuzz $$target -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done

format: .venv/dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

LOCKED = cpu serve openvino camera report sign
lock: .venv/python ## Write the hashes of requirements.lock again, for the versions of constraints.txt
	$(INSTALL) uv
	(grep '^#' requirements.lock; $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate --no-emit-index-url -c constraints.txt \
	  $(LOCKED:%=--extra %) pyproject.toml) > .venv/requirements.lock
	mv .venv/requirements.lock requirements.lock

dist: .venv/dev ## Build the sdist, and from it the wheel, into dist/, and check them
	$(INSTALL) --group release
	rm -rf dist
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

clean: ## Remove the environment, caches and demo results
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	rm -rf runs/demo runs/demo.bundle

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'Python 3.11 or newer is needed to train and export: make PYTHON=python3.11 ...'; exit 1; }
	$(PYTHON) -m venv .venv
	@# Without the clone on the path, Python started in the folder that holds the clone would take
	@# the clone itself, whose name is the same, for the package.
	@echo '$(CURDIR)' > "$$($(BIN)/python -c 'import site; print(*site.getsitepackages())')/clone.pth"
	touch $@

.venv/demo: .venv/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[all]'
	touch $@

.venv/dev: .venv/demo
	$(INSTALL) 'pip>=25.1' # older ones know no dependency groups
	$(INSTALL) -e '.[all]' --group dev
	$(INSTALL) --no-deps tensorrt-stubs # it depends on TensorRT, which type checks do not need
	$(INSTALL) --no-deps axe-playwright-python # tests use its copy of axe-core, not Playwright
	$(INSTALL) --no-deps tritonclient # it depends on older versions than those of constraints.txt
	touch $@

.venv/docs: .venv/python pyproject.toml constraints.txt
	$(INSTALL) 'pip>=25.1' # older ones know no dependency groups
	$(INSTALL) -e . --group docs
	touch $@
