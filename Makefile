# Everything below works on a machine with Python 3.11 or newer, make and a package registry.
PYTHON ?= python3
BIN := .venv/bin
# What is installed, and its version.
PACKAGE := pyproject.toml src/feedax/__init__.py

.PHONY: train test test-all gpu check bench records docs docs-links screenshots browser assets dist clean

## Train the tutorial's network on MNIST.
train: .venv/installed
	$(BIN)/feedax train

# Tests compile thousands of small programs and run each for a moment, so that what LLVM does to
# make them fast costs more than it saves. test-all compiles as everybody does.
COMPILE_QUICKLY := --xla_backend_optimization_level=0

# They start hundreds of processes, too, none of which should compile the package's modules again.
KEEP_BYTECODE := PYTHONDONTWRITEBYTECODE=

## Run the tests but for the slow ones: at most 5 minutes on two quiet cores.
test: .venv/installed-test browser
	$(KEEP_BYTECODE) XLA_FLAGS="$(COMPILE_QUICKLY) $$XLA_FLAGS" \
	    $(BIN)/python -m pytest -n 2 --dist loadfile --durations 10

## Run every test: those too that kill and resume some forty runs.
test-all: .venv/installed-test browser
	$(KEEP_BYTECODE) $(BIN)/python -m pytest -n 2 --dist loadfile --durations 10 -m "not gpu"

## On a machine with an NVIDIA GPU: test what needs one, and print its table of the benchmarks.
gpu: .venv/installed-test
	@$(BIN)/python benchmarks/gpu.py --name
	$(KEEP_BYTECODE) $(BIN)/python -m pytest -m gpu
	@$(BIN)/python benchmarks/gpu.py

## Lint, format and type checks.
check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## Time training, starting up, checkpoints and the loader, beside others and the bare loop.
bench: .venv/installed-bench
	@for name in tutorial_epoch arithmetic whole_job modern fit_overhead fit_conv augment sweep start_up checkpoints \
	    loader; do \
	    $(BIN)/python benchmarks/$$name.py || exit 1; \
	done

## Train the networks that the README makes claims of, many seeds each; an hour on two cores.
records: .venv/installed
	$(BIN)/feedax sweep --preset tutorial --seeds 5 --name tutorial
	$(BIN)/feedax sweep --preset modern --seeds 10 --name modern
	$(BIN)/feedax sweep --preset best --seeds 3 --name best

## Build the documentation site into docs/_build/html, and train what its gallery shows: 3 minutes.
docs: .venv/installed-docs docs/_build/gallery/trained
	$(BIN)/python docs/site/build.py

docs/_build/gallery/trained: docs/gallery.md docs/site/gallery.py $(shell find src -name "*.py" -o -path "*/web/*")
	@$(MAKE) --no-print-directory .venv/installed-docs browser
	$(BIN)/python docs/site/gallery.py docs/_build/gallery
	@touch $@

## Look up every link of the site that leads to another one.
docs-links: .venv/installed-docs
	$(BIN)/python docs/site/build.py --links --out docs/_build/links

## Train the tutorial's network, and draw the pictures of its report and of feedax show for the README.
screenshots: .venv/installed-docs browser
	$(BIN)/python docs/site/screenshots.py docs/_build/screenshots

## Install Debian's Chromium, in which pages are tested, where there is no browser.
browser:
	@$(PYTHON) scripts/chromium.py

# The library that draws the charts of pages, from the npm registry. The package carries it.
UPLOT := 1.6.32
ASSETS ?= src/feedax/web/uplot

## Fetch the scripts that pages are sent, with their licence.
assets:
	@mkdir -p $(ASSETS) build
	cd build && npm pack --silent uplot@$(UPLOT) && tar -xzf uplot-$(UPLOT).tgz
	cp build/package/dist/uPlot.iife.min.js build/package/dist/uPlot.min.css build/package/LICENSE $(ASSETS)

## Build the source archive and the wheel into dist/.
dist: .venv/installed-test
	rm -rf dist
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf .venv runs build dist docs/_build

.venv/installed: $(PACKAGE)
	@$(PYTHON) scripts/install.py
	@touch $@

.venv/installed-test: $(PACKAGE)
	@$(PYTHON) scripts/install.py test
	@touch .venv/installed $@

.venv/installed-bench: .venv/installed
	@$(PYTHON) scripts/install.py bench
	@touch $@

.venv/installed-docs: .venv/installed
	@$(PYTHON) scripts/install.py docs
	@touch $@
