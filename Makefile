.PHONY: lint test quick oldest

PYTHON ?= python3

lint:
	ruff check .
	ruff format --check .
	mypy

test:
	pip install '.[test]' && python -m pytest -n auto

quick:
	python -m pytest -n auto -m 'not slow'

# The oldest versions that pyproject.toml's `dependencies` allow, with the Python that PYTHON names; its extras, tools of
# tests and packages of single features, are the newest. torchao's newest release needs a newer torch than the oldest,
# and transformers imports it wherever it is.
oldest: build/oldest/installed
	build/oldest/bin/pip install --quiet --no-deps .
	build/oldest/bin/python -m pytest -n auto

build/oldest/installed: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	sed -n '/^dependencies/,/^]/s/^ *"\([a-z0-9_-]*\)>=\([0-9.]*\).*/\1<=\2/p' pyproject.toml > $(@D)/oldest.txt
	$(@D)/bin/pip install --quiet -c $(@D)/oldest.txt '.[test]'
	$(@D)/bin/pip uninstall --quiet --yes torchao
	touch $@
