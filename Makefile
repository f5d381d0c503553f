# Two commands matter to a newcomer: `make demo` and `make test`. Each sets up what it needs, once.
PYTHON ?= python3
BIN := .venv/bin
export PYTHONSAFEPATH :=
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo test check fmt docs torture soak fuzz world world-mid bench-method bench peers deb clean

setup: .venv/.ready

# torch first and alone, at the locked version: asked for as a dependency it may pull another build.
.venv/.ready: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.lock)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: setup
	$(BIN)/python -m benchmarks.demo

# most tests wait more than they work: three files at a time on two cores, one thread each
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the pages that are made from the code, and the site of all pages in var/site; a link that leads nowhere is an error
docs: setup
	$(BIN)/python -m daemon.reference docs
	$(BIN)/python -m sphinx -q -W --keep-going -E -b html docs var/site

# what CI does in a short form, for two hours: power lost at every call, each fault of the disk at every change and at every call
# of SQLite, 300 kills of the real service, hostile files that are spoilt by what code they reach, and other examples for the
# tests that draw them
torture: setup
	$(BIN)/python -m pytest -q --hypothesis-profile drawn $$(grep -rl "hypothesis" tests --include "test_*.py")
	$(BIN)/python -m tests.power_loss --cycles 20
	ALIGND_EVERY_CHANGE=1 $(BIN)/python -m pytest -q tests/test_state_faults.py
	$(BIN)/python -m tests.ledger_faults
	$(BIN)/python -m tests.kills --kills 300
	$(BIN)/python -m tests.fuzz_guided --minutes 30

# a random user and a small disk for an hour; needs root, for a disk of its own
soak: setup
	$(BIN)/python -m tests.soak --minutes 60

# hostile files for every reader, for an hour
fuzz: setup
	$(BIN)/python -m tests.fuzz --minutes 60

# rebuilds the committed demo model from its seed, byte for byte
world: setup
	$(BIN)/python -m benchmarks.world.build

# builds the model of 8.4 million parameters into var/worlds/mid-0: 15 minutes of one core
world-mid: setup
	$(BIN)/python -m benchmarks.world.build --size mid

# ours, the paper's and the usual baselines on three seeds: under an hour on two cores; goes on where it was stopped
bench-method: setup
	$(BIN)/python -m benchmarks.method

# each step beside what a user would otherwise do, as ratios: three quarters of an hour, and 30 GB of disk for a while
bench: setup
	$(BIN)/python -m benchmarks.speed

# mergekit beside the product's own libraries, for the row of `make bench` that it is the other side of
peers: setup
	$(PYTHON) -m venv var/peers
	echo "$$(echo $(CURDIR)/.venv/lib/python3*/site-packages)" > $$(echo var/peers/lib/python3*/site-packages)/product.pth
	var/peers/bin/python -m pip install --quiet --disable-pip-version-check mergekit==0.1.5

# the Debian package, into dist/; BUNDLE=--bundle puts torch and all other libraries into it
deb: setup
	$(BIN)/python packaging/build_deb.py $(BUNDLE)

clean:
	rm -rf var .venv build dist *.egg-info
