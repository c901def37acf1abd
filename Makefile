# Two commands to begin with: `make demo` and `make test`. Each makes the environment .venv on first use.
# `make demo DATA=my_photos/` is the demo with your own images.

PYTHON ?= python3
BIN := .venv/bin
DATA :=

.PHONY: demo test check docs stress faults lock benchmark gpu gpu-dry clean

demo: .venv/installed
	@$(BIN)/pantomim demo $(DATA)

test: .venv/installed
	@echo "== Running the tests (about ten minutes on two cores)."
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed
	@echo "== Building the documentation site; site/index.html is its first page."
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

stress: .venv/installed
	@echo "== Killing every command at random moments, and resuming it (5 to 20 minutes on two cores)."
	$(BIN)/python tests/stress/kill_resume.py 60

faults: .venv/installed
	@echo "== Full disks, failing files, signals, changed images and more (about half an hour on two cores)."
	$(BIN)/python tests/stress/faults.py

benchmark: .venv/installed
	$(BIN)/pip install --quiet --editable ".[benchmark]"
	$(BIN)/python -m pytest -q tests/parity/test_transformers_mae.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/data.py

# The page is made of what was measured, even where a section failed; the exit status is then the measuring's.
gpu: .venv/installed
	@echo "== Measuring the training step on this machine's GPU: nine minutes at most."
	$(BIN)/python benchmarks/gpu.py --out runs/gpu; status=$$?; \
	$(BIN)/python benchmarks/gpu_page.py --add runs/gpu/result.json && exit $$status

gpu-dry: .venv/installed
	@echo "== The same at micro sizes on the CPU, compiled to code (half an hour on two cores)."
	$(BIN)/python benchmarks/gpu.py --out runs/gpu-dry --dry --inductor --budget 3600

lock: .venv/installed
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 pyproject.toml \
		--extra dev --extra docs --extra demo --extra parquet --no-annotate --no-header --output-file requirements.lock

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "pantomim needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "== Making the environment .venv: installing PyTorch and the other packages of requirements.lock."
	@echo "   Once, some minutes and about 6 GB."
	@$(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "$(PYTHON) cannot make environments. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

clean:
	rm -rf .venv runs build dist site src/*.egg-info .pytest_cache .ruff_cache .mypy_cache
