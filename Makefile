# Each target sets up what it needs: a virtual environment in .venv, installed from pyproject.toml.
PYTHON ?= python3
VENV   ?= .venv
CORES  ?= $(shell getconf _NPROCESSORS_ONLN)
GPUS   ?= $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')
SEEDS  ?= 1
PYTEST ?= -n 2 --dist loadfile
RECIPES ?= notebooks/recipes/paper
BATCH  ?=

export PATH := $(abspath $(VENV))/bin:$(PATH)
export JUPYTER_PREFER_ENV_PATH = 1
export OMP_WAIT_POLICY = passive

# A scheduler that looks again every 10 s, not every second for each job that has ended (7 minutes of CPU in 100 jobs).
SNAKEMAKE = snakemake --cores $(CORES) --resources gpu=$(GPUS) --rerun-incomplete --nolock --quiet rules host \
            --scheduler greedy --max-jobs-per-timespan 100/10s \
            --config seeds=$(SEEDS) gpus=$(GPUS)
SMOKE     = recipes=notebooks/recipes/smoke runs=runs/smoke

.PHONY: figures smoke test lint lab check-recipes bench clean

figures: $(VENV)/.installed
	$(SNAKEMAKE)
	rm -rf .figures && mkdir .figures
	cp runs/figures/*.png runs/figures/*.csv runs/figures/claims.md runs/figures/index.json runs/durations.csv .figures/
	rm -rf figures && mv .figures figures
	@cat runs/figures/results.md && echo && echo "Figures: $(CURDIR)/figures"

smoke: $(VENV)/.installed
	$(SNAKEMAKE) $(SMOKE)
	@cat runs/smoke/figures/results.md && echo && echo "Figures: $(CURDIR)/runs/smoke/figures"

test: lint
	pytest $(PYTEST)

lint: $(VENV)/.installed
	ruff check . && ruff format --check .

lab: $(VENV)/.installed
	jupyter lab --notebook-dir notebooks

check-recipes: $(VENV)/.installed
	python -m benchmarks.recipes $(if $(BATCH),--batch $(BATCH)) $(RECIPES)

bench: $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet -e '.[bench]'
	OMP_NUM_THREADS=1 python -m benchmarks

clean:
	rm -rf runs datasets $(VENV) .snakemake

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python >= 3.11 is needed, $(PYTHON) is %d.%d; say which one to use: make PYTHON=python3.12 ..." % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -e '.[dev]'
	@touch $@
