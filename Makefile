.PHONY: lint test

lint:
	ruff check .
	ruff format --check .

test:
	pip install '.[test]' && python -m pytest
