# Every target makes the environment first if it is missing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/ready

.PHONY: setup demo check test test-slow clean

setup: $(READY)

$(READY): pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints-cpu.txt -e '.[demo,test]'
	touch $(READY)

demo: $(READY)
	$(BIN)/llmft init demo
	cd demo && ../$(BIN)/llmft compare eval/market_news.yaml --train

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(READY)
	$(BIN)/pytest

test-slow: $(READY)
	$(BIN)/pytest -m 'slow or real'

clean:
	rm -rf demo .venv
