# make quickstart, make test, make docs, make bench: all a fresh machine needs is python3 with venv.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN ?= runs/quickstart

.PHONY: quickstart test test-fast lint docs notebooks bench clean

quickstart: $(VENV)/installed
	$(BIN)/python train.py --config=configs/quickstart.py --workdir=$(RUN)
	$(BIN)/python sample.py --checkpoint=$(RUN) --num_images=64 --out=$(RUN)/synthetic --grid --overwrite
	@echo
	@echo "To look at:"
	@echo "  $(RUN)/report.html             the whole training on one page, with a player"
	@echo "  $(RUN)/synthetic/grid.png      64 synthetic lesions; each also a file of its own beside it"
	@echo "  $(RUN)/samples/reals.png       the phantoms it learned from"
	@echo "  $(RUN)/samples/step_*.png      the same latents over the training"

PYTEST = $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=loadfile

test: $(VENV)/installed-test lint
	$(PYTEST)

# For daily work: below a minute, without what trains or starts processes.
test-fast: $(VENV)/installed-test
	$(PYTEST) -m "not slow"

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache > $(VENV)/lint-imports.log || (cat $(VENV)/lint-imports.log; exit 1)
	$(BIN)/mypy

# Writes site/, to be put on any web server. Fails at a link that leads nowhere, and at a page that asks another server.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	! grep -rE '<(script|link|img)[^>]* (src|href)="?(https?:)?//' site --include='*.html'

# Runs them from top to bottom, and writes them with their outputs: in place, or to OUT=FOLDER.
notebooks: $(VENV)/installed-notebooks
	$(BIN)/python notebooks/run.py $(OUT)

# Prints this machine's figures beside PyTorch's; BENCH="--quick", BENCH="--rows=step64" for less.
bench: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks $(BENCH)

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-test: $(VENV)/installed pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

$(VENV)/installed-docs: $(VENV)/installed pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

$(VENV)/installed-notebooks: $(VENV)/installed pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[notebooks]'
	touch $@

# PyTorch is large, and on Linux brings CUDA along; for a CPU: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
$(VENV)/installed-bench: $(VENV)/installed pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) build site *.egg-info
