# make quickstart   a first run: install, tiny model, fine-tune, predict, what was learned
# make quickstart-preference   after it: a reward model, preference optimization, what changed
# make quickstart-rl           after that: reinforcement learning with that reward model and rules, what changed
# make install      what training needs
# make develop      what tests and linters need, too
# make test         everything that must hold before a change lands
# make quick        the tests without the slow ones, and one case of each
# make cpp          the programs that run exported models, into build/cpp
# make cpp-lint     clang-format and clang-tidy over cpp/
# make docs      the documentation as a site, into build/site
# make newest       the quick tests with the newest releases of all libraries, in an environment of their own
# make check        the same without installing: linters, types, layers, tests

PYTHON ?= python3
BIN := .venv/bin
NEWEST := .venv-newest
SITE := .venv-docs
CPP_BUILD ?= build/cpp
TINY := models/tiny-baichuan-7b
TAUGHT := models/quickstart
PREFERRED := models/quickstart_preferred
REWARD := models/quickstart_reward

# Names of the libraries without the bounds on their versions.
export DEPENDENCIES = import re, tomllib; \
  needed = tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']; \
  print(*(re.match('[A-Za-z0-9_-]+', line)[0] for line in needed))

# What the extra docs names.
export PAGES = import tomllib; \
  print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])

.PHONY: install develop quickstart quickstart-preference quickstart-rl test quick newest check lint tests cpp cpp-lint docs clean

# torch first and by version: a dependency on plain torch would pull another build.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

.venv/developed: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

install: .venv/installed

develop: .venv/developed

$(TINY): | .venv/installed
	$(BIN)/python -m lit_sft tiny --family baichuan-7b --output $@

quickstart: .venv/installed $(TINY)
	$(BIN)/python -m lit_sft fit --config configs/quickstart.yaml
	$(BIN)/python -m lit_sft predict
	$(BIN)/python -m lit_sft summary

# What the newest quickstart has made.
$(TAUGHT): | .venv/installed
	ls -d runs/quickstart-[0-9]*/model >/dev/null 2>&1 || $(MAKE) quickstart
	cp -r "$$(ls -d runs/quickstart-[0-9]*/model | tail -n 1)" $@

quickstart-preference: .venv/installed $(TAUGHT)
	$(BIN)/python -m lit_sft fit --config configs/quickstart_reward.yaml
	$(BIN)/python -m lit_sft test
	$(BIN)/python -m lit_sft fit --config configs/quickstart_preference.yaml
	$(BIN)/python -m lit_sft compare --reward "$$(ls -d runs/quickstart_reward-* | tail -n 1)"
	$(BIN)/python -m lit_sft summary

# What the newest quickstart of preferences has made.
$(PREFERRED): | .venv/installed
	ls -d runs/quickstart_preference-[0-9]*/model >/dev/null 2>&1 || $(MAKE) quickstart-preference
	cp -r "$$(ls -d runs/quickstart_preference-[0-9]*/model | tail -n 1)" $@

$(REWARD): | .venv/installed $(PREFERRED)
	cp -r "$$(ls -d runs/quickstart_reward-[0-9]*/adapter | tail -n 1)" $@

quickstart-rl: .venv/installed $(PREFERRED) $(REWARD)
	$(BIN)/python -m lit_sft fit --config configs/quickstart_rl.yaml
	$(BIN)/python -m lit_sft compare --reward $(REWARD)
	$(BIN)/python -m lit_sft summary

test: .venv/developed
	$(MAKE) check

check: lint tests

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# A file at a time, in the order of tests/conftest.py, on each of two processes of one thread: models this small gain
# nothing from threads.
tests:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

quick: .venv/developed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not slow"

# CPP_OPTIONS=-DLIT_SFT_SANITIZE=ON CPP_BUILD=build/cpp-sanitized: with the sanitizers.
cpp:
	@cpp/packages.sh
	cmake -S cpp -B $(CPP_BUILD) $(CPP_OPTIONS)
	cmake --build $(CPP_BUILD) --parallel 2

# Nothing is built: clang-tidy reads how it would be, without the precompiled headers of g++.
cpp-lint:
	@cpp/packages.sh clang-format clang-tidy
	clang-format --dry-run --Werror cpp/src/*.cpp cpp/src/*.h cpp/include/lit_sft/*.h cpp/examples/*.cpp cpp/tests/*.cpp
	cmake -S cpp -B build/cpp-lint -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON -DLIT_SFT_UNITY=OFF
	printf '%s\n' cpp/src/*.cpp cpp/examples/*.cpp | xargs -P 2 -n 1 clang-tidy --quiet -p build/cpp-lint

# In an environment of its own: the reference is read from the source, without torch.
$(SITE)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt $$($(PYTHON) -c "$$PAGES")
	touch $@

docs: $(SITE)/installed
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --strict

# An early warning, not a condition: the newest releases that pyproject.toml allows, then the newest there are.
newest:
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/pip install --quiet --disable-pip-version-check torch
	$(NEWEST)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@echo "The newest that pyproject.toml allows:"
	-OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not slow"
	$(NEWEST)/bin/pip install --quiet --disable-pip-version-check --upgrade $$($(NEWEST)/bin/python -c "$$DEPENDENCIES")
	@echo "The newest released; what they will change some day is told at the end and fails nothing:"
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not slow" -W default::FutureWarning

clean:
	rm -rf .venv $(NEWEST) $(SITE) $(TINY) $(TAUGHT) $(PREFERRED) $(REWARD) runs build
