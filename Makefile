# Every target makes the environment first if it is missing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/ready
PARALLEL := --numprocesses auto --dist loadscope
ALL := not slow and not real and not gpu
LOWEST := .venv-lowest
NEWEST := .venv-newest
# Of the core and of the reports, `name>=X` becomes `name==X`; torch stays as in constraints-cpu.txt.
LOWER_BOUNDS = import tomllib; \
  project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
  needs = project["dependencies"] + project["optional-dependencies"]["report"]; \
  print(*(n.split(",")[0].replace(">=", "==") for n in needs if n[:6] != "torch>"), sep="\n")

.PHONY: setup demo check test test-launched test-slow test-lowest test-newest clean

setup: $(READY)

$(READY): pyproject.toml constraints-cpu.txt
	@echo "installing llmft and its packages into .venv, once; this takes a few minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints-cpu.txt -e '.[demo,test]'
	touch $(READY)

demo: $(READY)
	@$(BIN)/llmft init demo >/dev/null
	cd demo && ../$(BIN)/llmft compare eval/market_news.yaml --train
	@echo "next: your own table, with $(BIN)/llmft init --from FILE DIR; see README.md"

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(READY)
	$(BIN)/pytest $(PARALLEL)

test-launched: $(READY)
	$(BIN)/pytest $(PARALLEL) -m 'launched and $(ALL)'

test-slow: $(READY)
	$(BIN)/pytest -m 'slow or real'

test-lowest: $(LOWEST)/ready
	$(LOWEST)/bin/pytest $(PARALLEL) -m '$(ALL)'

$(LOWEST)/ready: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -c '$(LOWER_BOUNDS)' > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet -c constraints-cpu.txt \
	  -c $(LOWEST)/constraints.txt -e '.[demo,test]'
	touch $@

# Upgraded each time. torch stays as in constraints-cpu.txt here too: raise it there to try another.
test-newest:
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade pip
	$(NEWEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager \
	  -c constraints-cpu.txt -e '.[demo,test]'
	$(NEWEST)/bin/pytest $(PARALLEL) -m '$(ALL)'

clean:
	rm -rf demo .venv $(LOWEST) $(NEWEST)
