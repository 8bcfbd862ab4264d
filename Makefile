# make demo   a dozen prompts routed, called and logged; no API key, no torch
# make test   ruff, mypy and pytest
# Both make .venv and install what they need, once per change of pyproject.toml or constraints.txt.

.PHONY: demo test lint wheel clean
.DELETE_ON_ERROR:

VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
export LITELLM_LOCAL_MODEL_COST_MAP := True

demo: $(VENV)/.serving
	$(VENV)/bin/ensemble demo

test: lint
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.all
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy

wheel: $(VENV)/.all
	$(VENV)/bin/python -m hatchling build -d dist

clean:
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.serving: $(VENV)/.made pyproject.toml constraints.txt
	@echo 'Installing what serving needs into $(VENV) (under a minute) ...'
	$(PIP) install -q -c constraints.txt -e '.[cpu]'
	@touch $@

$(VENV)/.all: $(VENV)/.made pyproject.toml constraints.txt
	@echo 'Installing what the tests need into $(VENV), torch among it (some minutes) ...'
	$(PIP) install -q -c constraints.txt -e '.[cpu,train,encoder,postgres,benchmarks,dev]'
	@touch $@ $(VENV)/.serving

$(VENV)/.made:
	@for python in python3.11 python3 python; do \
	    if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "Making $(VENV) with $$($$python --version) ..."; \
	        $$python -m venv $(VENV) && touch $@; exit; \
	    fi; \
	done; \
	echo 'Expected Python 3.11 or newer with its venv module, found none as python3.11, python3 or python.' >&2; \
	echo 'Install it (on Debian and Ubuntu: python3 and python3-venv) and run make again.' >&2; \
	exit 1
