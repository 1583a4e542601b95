# onnxfold: every target sets up .venv itself and reuses it.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
# A file's tests share what they compute; files go to the cores in the order they lie in. The cores
# are taken: threads of BLAS would only wait for each other. Tests start many processes, frameworks
# among them, which without bytecode would all be compiled each time.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(RUN) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
SOURCES := src/onnxfold/*.py passes runtime tests benchmarks examples fixtures docs

.PHONY: help setup demo examples round-trips test test-fast check format bench parity fixtures docs wheel-check clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Create .venv with onnxfold and its development tools

$(READY): pyproject.toml
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo "installing onnxfold and its dependencies into $(VENV) ..."
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY) ## Compile a real file-type classifier to int8 on real files, and prove it
	@$(RUN) -m examples.magika.run

examples: $(READY) ## Train six small networks on real data, one a kind of loss
	@for each in classify_digits cluster_digits vae_digits retrieve_halves robust_regression restore_colours; do \
	    $(RUN) -m examples.training.$$each || exit; done

round-trips: $(READY) ## From Keras, TFLite, PyTorch and scikit-learn to int8 in one command each
	@$(RUN) -m examples.round_trips.run --install

test: $(READY) ## Run the whole test suite
	@$(PYTEST)

test-fast: $(READY) ## Run the tests that take seconds
	@$(PYTEST) -m 'not slow and not network'

check: $(READY) ## Lint, formatting and strict types
	@$(VENV)/bin/ruff check $(SOURCES)
	@$(VENV)/bin/ruff format --check $(SOURCES)
	@$(VENV)/bin/pyright

format: $(READY) ## Format the code
	@$(VENV)/bin/ruff check --fix $(SOURCES)
	@$(VENV)/bin/ruff format $(SOURCES)

bench: $(READY) ## Measure side by side: graph edits, calibration, fold, quantization, training
	@$(RUN) benchmarks/bench_graph_edits.py
	@$(RUN) benchmarks/bench_calibration.py
	@$(RUN) -m benchmarks.bench_fold
	@$(RUN) -m benchmarks.bench_tflite
	@$(RUN) benchmarks/bench_quantization.py
	@$(RUN) benchmarks/bench_training.py

parity: $(READY) ## Export every case of TensorFlow and hold it against TensorFlow: the table in docs/export.md
	@$(RUN) -m fixtures.tensorflow_cases.corpus $(if $(THROUGH),--through $(THROUGH))

fixtures: $(READY) ## Regenerate the committed fixture models
	@$(RUN) -m fixtures.generate

docs: $(READY) ## Regenerate docs/passes.md, the matrix in docs/fold.md and the losses in docs/losses.md
	@$(RUN) docs/generate.py
	@$(RUN) docs/loss_page.py

wheel-check: $(READY) ## Build the wheel through the sdist and import all of it in a clean environment
	@$(RUN) tests/packaging/wheel_check.py

clean: ## Remove .venv and everything generated
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis .onnxfold
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
