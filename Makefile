# make demo   end-to-end run on the bundled model, with a report in demo/
# make test   everything that must hold; the views too where Chromium is on PATH (or named in CHROMIUM), pictures of them in FLUXINTERP_SHOTS
# make lab    JupyterLab on the notebooks
# make interop  SAELens opens our dictionaries, and we open what it, sparsify and dictionary_learning write (in an environment of their own)
# make types   pyright on README, tutorials and how-tos
# make bench  SAE training beside four other libraries, in an environment of its own
# Each sets up .venv by itself when it is missing or older than what it is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test lab bench interop readme export types
setup: $(STAMP)

$(STAMP): settings.ini setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/fluxinterp demo

# one thread each for two notebook workers; no colours or bars in logs.
# two tutorials are run, and their tables compared, by tests/test_tutorials.py
test: export OMP_NUM_THREADS ?= 1
test: export PATH := $(CURDIR)/$(BIN):$(PATH)
test: $(STAMP)
	timeout 1800 $(BIN)/nbdev_test --n_workers 2 --timing --skip_file_re '^([_.]|first_features|what_does_this_feature_do)'
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests

lab: $(STAMP)
	$(BIN)/jupyter lab --notebook-dir nbs

# everything that is made from notebooks: modules, JavaScript, styles, stub, map; and clean notebooks
export: $(STAMP)
	$(BIN)/nbdev_export
	$(BIN)/python -m fluxinterp.export
	$(BIN)/nbdev_clean

readme: $(STAMP)
	$(BIN)/jupyter nbconvert --to markdown --TemplateExporter.exclude_input_prompt=True --output-dir . --output README nbs/index.ipynb

# the others' requirements are kept out of .venv; of two of them only the part that trains is wanted, without theirs
BENCH := .venv-bench
bench: $(BENCH)/.installed
	cd nbs/benchmarks && $(CURDIR)/$(BENCH)/bin/exec_nb sae_training.ipynb --dest sae_training.ipynb --exc_stop

$(BENCH)/.installed: settings.ini setup.py constraints.txt
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet -c constraints.txt torch
	$(BENCH)/bin/python -m pip install --quiet -c constraints.txt -e . 'fastcore<2' 'execnb<0.2' ipykernel scikit-learn einops sae-lens eai-sparsify
	$(BENCH)/bin/python -m pip install --quiet --no-deps dictionary-learning overcomplete
	touch $(BENCH)/.installed

PEERS := runs/peers
$(PEERS)/.installed: constraints.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet -c constraints.txt torch sae-lens==6.54.12 eai-sparsify==1.3.3 nnsight==0.8.1
	$(PEERS)/bin/python -m pip install --quiet --no-deps dictionary-learning==0.1.0
	touch $(PEERS)/.installed

interop: $(STAMP) $(PEERS)/.installed
	rm -rf runs/interop
	$(BIN)/python tests/peers/ours.py write runs/interop/ours
	$(PEERS)/bin/python tests/peers/theirs.py open runs/interop/ours
	$(PEERS)/bin/python tests/peers/theirs.py write runs/interop/theirs
	$(BIN)/python tests/peers/ours.py read runs/interop/theirs

# what a type checker says of README, tutorials and how-tos (pyright, from npm)
types: $(STAMP)
	$(BIN)/python tests/scripts/user_types.py
