# make quickstart   a first run: install, tiny model, fine-tune, predict, what was learned
# make test         everything that must hold before a change lands
# make check        the same without installing: linters, types, layers, tests

PYTHON ?= python3
BIN := .venv/bin
TINY := models/tiny-baichuan-7b

.PHONY: install quickstart test check lint tests clean

# torch first and by version: a dependency on plain torch would pull another build.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

install: .venv/installed

$(TINY): | .venv/installed
	$(BIN)/python -m lit_sft tiny --family baichuan-7b --output $@

quickstart: .venv/installed $(TINY)
	$(BIN)/python -m lit_sft fit --config configs/quickstart.yaml
	$(BIN)/python -m lit_sft predict
	$(BIN)/python -m lit_sft summary

test: .venv/installed
	$(MAKE) check

check: lint tests

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# A file at a time on each of two processes of one thread: models this small gain nothing from threads.
tests:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

clean:
	rm -rf .venv $(TINY) runs
