# make demo: the main job · make test: the tests · both install what they need into .venv by themselves
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && { echo $$p; break; }; done)
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: demo test lint types generated sanitize docs install clean

demo: install
	$(BIN)/torchrnn text --run runs/demo --overwrite --time-limit 100
	$(BIN)/torchrnn sample runs/demo --prompt "The " --length 300

test: install
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyright

generated: install
	$(BIN)/python -m torchrnn.codegen --check
	$(BIN)/python -m docs.mistakes --check
	$(BIN)/python -m docs.support --check

sanitize: install
	.ci/sanitize

docs: install
	$(BIN)/mkdocs build --strict

install: .venv/.installed torchrnn/libtorchrnn.so

# torch first and alone: any later requirement is then satisfied by the release that we test with
.venv/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "torchrnn needs Python 3.10 or newer: none was found; set PYTHON=/path/to/python3"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)' 'setuptools>=77'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[tools,onnx,test,compat-light,docs,dev]'
	@touch $@

# pip has built it once; this follows changes of csrc. Without a compiler it only says so.
torchrnn/libtorchrnn.so: setup.py $(shell find csrc -type f) | .venv/.installed
	$(BIN)/python setup.py --quiet build_ext --inplace

clean:
	rm -rf .venv build dist site runs *.egg-info torchrnn/*.so
