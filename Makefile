# Everything runs from `.venv`, which the first target makes. PYTHON chooses the interpreter (3.11 or newer). MONAI Label,
# whose client the tests of `semiseg serve` use, comes without what it needs otherwise, which is gigabytes.
PYTHON ?= python3
BIN := .venv/bin
# Modules are compiled when they are first loaded, and kept, whatever the shell says: tests start some hundred processes.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: demo test thorough check docs pages browser bench fuzz clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "semiseg needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --constraint constraints.txt --editable '.[dev,docs]'
	$(PIP) --no-deps monailabel==0.8.5 || \
		echo "The client of 3D Slicer's module could not be installed; its tests are skipped."
	touch $@

# The main job on generated scans: 3 to 7 minutes on one core; leaves semiseg-demo/report.html.
demo: .venv/installed
	$(BIN)/semiseg demo semiseg-demo

check: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# The pages of `semiseg view`, type-checked and bundled into the package; the wheel's hook (hatch_build.py) does the same.
pages: pages/node_modules/.package-lock.json
	cd pages && npm run --silent check && npm run --silent build

pages/node_modules/.package-lock.json: pages/package-lock.json
	cd pages && npm ci --ignore-scripts
	touch $@

# What the browser's tests need, where it can be had here; without it they are skipped, with the reason.
browser:
	@if command -v npm >/dev/null && $(MAKE) --no-print-directory pages/node_modules/.package-lock.json; then $(MAKE) --no-print-directory pages; \
		else echo "The pages are not built: that needs Node 20 and its registry."; fi
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core >/dev/null; } || \
		echo "No Chromium here, and none could be installed."

# Types, the site and the pages side by side, then two files of tests at a time, by one thread each. `make thorough` has
# besides what takes long and differs little from what `test` has.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
test: .venv/installed
	$(MAKE) --no-print-directory -j3 check docs browser
	$(PYTEST) -m 'not thorough'

thorough: .venv/installed
	$(MAKE) --no-print-directory -j3 check docs browser
	$(PYTEST)

# The pages of docs/ as a site that needs no network: open site/index.html. The variable keeps the theme's news quiet.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Ten thousand damaged files, and three hundred kills: an hour or two. docs/security.md says what for.
fuzz: .venv/installed
	$(BIN)/python tests/fuzz/fuzz.py --files 10000 --kills 300

# Slow: hours, on a quiet machine. docs/lab/benchmarks.md says what each shows. DATA is the folder of real volumes.
DATA ?= ../shared/data
study = $(BIN)/semiseg study benchmarks/studies/$(1).toml --data $(DATA)/$(2) --output runs/$(1)_study \
	--results docs/benchmarks/$(1)

# The tools that we are measured against, in an environment of their own. Not by their requirements: one of them asks for
# timm and torchvision, which drag in another torch.
.peers/installed: benchmarks/peers.txt
	test -x .peers/bin/python || $(PYTHON) -m venv .peers
	.peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement benchmarks/peers.txt
	touch $@

# Of PyMIC for benchmarks/train_pymic.py: it needs torchvision, and the peers above do without.
.pymic/installed: benchmarks/pymic.txt
	test -x .pymic/bin/python || $(PYTHON) -m venv .pymic
	.pymic/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement benchmarks/pymic.txt
	touch $@

bench: .venv/installed .peers/installed
	$(BIN)/python benchmarks/against_peers.py --data $(DATA)
	$(BIN)/python benchmarks/hard_limit.py
	$(BIN)/python benchmarks/demo_difficulty.py
	$(call study,hippocampus_by_minutes,Dataset004_Hippocampus)
	$(call study,head_neck_by_minutes,Dataset101_HeadNeckCT)
	$(call study,left_atrium_by_minutes,Dataset102_LeftAtriumHalf)
	$(BIN)/semiseg run runs/hippocampus --data $(DATA)/Dataset004_Hippocampus --labelled 4 --minutes 10 --method pseudo_label
	$(BIN)/python benchmarks/gradient_cosine.py --run runs/hippocampus
	$(BIN)/semiseg run runs/head_neck --data $(DATA)/Dataset101_HeadNeckCT --labelled 8 --minutes 10 --method supervised
	$(BIN)/python benchmarks/fewer_tiles.py --run runs/head_neck --data $(DATA)/Dataset101_HeadNeckCT

clean:
	rm -rf pages/node_modules src/semiseg/view/static
	rm -rf .venv site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
