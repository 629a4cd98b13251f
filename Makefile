# Makes the environment (.venv) and calls doit, pytest or JupyterLab in it; `make` alone lists the commands.
# Variables: PYTHON=... the Python to make .venv with, PRESET=... passed on to doit, WORKERS=... parallel tests,
# LAB_FLAGS=... further flags of JupyterLab or of the demo's server, MINUTES=... of the soak.

SHELL   := bash
unexport PYTHONDONTWRITEBYTECODE  # packages are installed without bytecode, which takes a minute: the first import writes it
WORKERS ?= 2
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed

# In .venv, with its programs first in the PATH: papermill and nbval start the Python they find there.
RUN  = PATH="$(CURDIR)/$(BIN):$$PATH"
DOIT = $(RUN) python -m doit $(if $(PRESET),preset="$(PRESET)")

# Everything behind the tables: of small what is measured on its shipped weights, of the others the trainings, too; of
# a preset that is named everything.
EVERYTHING = $(RUN); $(if $(PRESET),python -m doit preset="$(PRESET)" record=yes full=yes, \
	python -m doit preset=tiny full=yes && python -m doit preset=face && python -m doit preset=street && \
	python -m doit record=measured full=yes)

# The stamp is written last and holds the project's folder. Without it, in a folder that was moved or copied, or with
# the Python gone that .venv was made with, nothing in .venv can be trusted: it is made again from nothing.
FRESH := $(shell [ "$$(cat $(STAMP) 2>&1)" = "$(CURDIR)" ] && $(BIN)/python -c '' 2>/dev/null || echo yes)

# Each candidate has to run: version managers put commands in the PATH that only print an error. What is chosen is the
# newest; if that is the Python of a virtual environment, the one behind it.
CANDIDATES = $(if $(PYTHON),"$(PYTHON)",python3.13 python3.12 python3.11 python3 python)
SUITABLE   = import sys, venv, ensurepip; v = sys.version_info; \
	(3, 11) <= v < (3, 14) and print(v.minor, sys._base_executable)

.PHONY: help setup tables train weights test lab demo soak notebooks clean FORCE

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: $(STAMP)  ## make .venv with the versions of environment.yml

tables: setup  ## run all notebooks, draw the figures, print the tables; PRESET=tiny trains all from nothing first; FULL=1: hours
	@$(if $(FULL),$(EVERYTHING),$(DOIT))

train: setup  ## only the trainings, of the preset small unless PRESET names another
	@$(RUN) python -m doit preset="$(or $(PRESET),small)" train

weights: setup  ## fetch the published weights of paper scale into weights/ (7 GB), at pinned commits, with checksums
	@$(RUN) python -m doit weights

# What takes long goes first, so that no worker is left alone with it: notebooks, and not the files with most tests.
test: setup  ## ruff, unit tests, and the committed notebooks against their outputs
	@status=0; export OMP_NUM_THREADS=1; $(RUN); \
	ruff check . || status=1; \
	python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder --nbval --nbval-current-env notebooks tests \
	  || status=1; \
	exit $$status

lab: setup  ## open JupyterLab on the tour
	@$(RUN) python -m jupyterlab --ip=127.0.0.1 --LabApp.default_url=/lab/tree/notebooks/00_tour.ipynb $(LAB_FLAGS)

demo: setup  ## open the live demo in a browser window, without code, on this machine only
	@$(RUN) python -m voila notebooks/50_stream_demo.ipynb --Voila.ip=127.0.0.1 $(LAB_FLAGS)

soak: setup  ## half an hour of random hands on the live demo in Chromium; writes a run "soak"
	@$(RUN) python tests/browser.py --minutes $(or $(MINUTES),30)

notebooks: setup  ## execute the committed notebooks again, on one thread like the tests
	@OMP_NUM_THREADS=1 $(DOIT) notebooks

clean:  ## remove .venv and caches; runs/ and figures/ stay
	rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info
	find rainlab data_prep tests notebooks -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): environment.yml pyproject.toml $(if $(FRESH),FORCE)
	@set -euo pipefail; \
	if [ "$(FRESH)" ]; then \
	  python="$$(for name in $(CANDIDATES); do "$$name" -c '$(SUITABLE)' 2>/dev/null || true; done \
	    | sort -s -k1,1nr | head -n 1 | cut -d ' ' -f 2-)"; \
	  if [ -z "$$python" ]; then \
	    echo "rainlab needs Python 3.11, 3.12 or 3.13 with its venv module. Tried without success:" $(CANDIDATES) >&2; \
	    echo "Install one (python.org; Debian: apt install python3-venv), or name yours:" >&2; \
	    echo "  make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	  fi; \
	  echo "making $(VENV) with $$("$$python" -V), $$python: 2.3 GB and some minutes, more where torch brings CUDA"; \
	  "$$python" -m venv --clear $(VENV); \
	fi; \
	rm -f $(STAMP); \
	echo "installing the versions of environment.yml"; \
	sed -n -e '1,/- pip:/d' -e 's/^ *- *//p' environment.yml > $(VENV)/requirements.txt; \
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile --progress-bar off -r $(VENV)/requirements.txt \
	  | awk '/^Collecting .*[(]from -r/ {print "  " $$2} /^Installing/ {print "  unpacking " NF - 3 " packages"} \
	      {fflush()}'; \
	echo "$(CURDIR)" > $(STAMP)
