# Two commands do everything on a fresh machine: make demo, make test.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test test-all lint docs notebooks clean

demo: $(VENV)/ready
	$(RUN) -m experiments.digits --flagfile=experiments/flagfiles/digits_demo.cfg

test: $(VENV)/ready
	JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.jax_cache \
	JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 $(RUN) -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(VENV)/ready
	JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.jax_cache \
	JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 $(RUN) -m pytest -n 2 --dist worksteal

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/ready: requirements.txt requirements-dev.txt requirements-docs.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ds4nn_jax needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

docs: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet
	@! grep -rEo $(FETCHED) build/site --include='*.html'

# What a page would fetch from another host, or ask it.
FETCHED := '<(script|img|iframe|link rel="(stylesheet|preconnect)")[^>]*(src|href)="https?:[^"]*|data-md-component="source"'

# The tutorials' notebooks, run anew.
notebooks: $(VENV)/ready
	$(RUN) -m jupyter execute --inplace docs/tutorials/*.ipynb

clean:
	rm -rf $(VENV) .jax_cache .pytest_cache .ruff_cache build *.egg-info
