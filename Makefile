# Every target is one line of `python ...`; README.md lists them for systems without make.
# With no active environment make uses (and first creates) .venv; PYTHON=python uses what is installed (Colab, Kaggle notebooks).

BASE_PYTHON ?= python3
ifdef PYTHON
else ifdef VIRTUAL_ENV
PYTHON := python
SETUP := $(VIRTUAL_ENV)/.installed
TESTS := $(VIRTUAL_ENV)/.installed-tests
BENCH := $(VIRTUAL_ENV)/.installed-bench
else
PYTHON := .venv/bin/python
SETUP := .venv/.installed
TESTS := .venv/.installed-tests
BENCH := .venv/.installed-bench
endif
INSTALL = $(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement
PEERS := image_folder_documented image_folder_best trainer_documented trainer_best trainer_compiled timm_loop pipeline_documented pipeline_best
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-base weights data submit kernel score report attention ablation bench test test-slow test-gpu fuzz lint

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(SETUP)  ## install the packages, into .venv unless an environment is active

.venv/bin/python:
	$(BASE_PYTHON) -m venv .venv

$(SETUP): requirements.txt constraints.txt | $(filter .venv/bin/python,$(PYTHON))
	@echo "installing the packages (about 5 GB with a GPU build of torch, a few minutes)"
	$(INSTALL) requirements.txt
	@touch $@

$(TESTS): tests/requirements.txt $(SETUP)
	$(INSTALL) tests/requirements.txt
	@touch $@

$(BENCH): tests/benchmarks/requirements.txt $(SETUP)
	$(INSTALL) tests/benchmarks/requirements.txt
	@touch $@

demo: $(SETUP)  ## the whole job on handwritten digits: train, predict, check, score, page
	$(PYTHON) -m pipeline.demo

demo-base: $(SETUP)  ## rebuild the demo's pretrained base from nothing
	$(PYTHON) -m pipeline.demo --rebuild-base

weights: $(SETUP)  ## install released weights (WEIGHTS=drive id, link or zip; default: finetuned_model/release.yaml)
	$(PYTHON) -m pipeline.fetch.releases $(if $(WEIGHTS),--weights "$(WEIGHTS)")

data: $(SETUP)  ## into data/: a Kaggle competition (COMPETITION=slug), what you downloaded (FROM=folder or archive), a public set (DATASET=cifar10 ...)
	$(PYTHON) -m pipeline.fetch.install $(if $(FROM),--from "$(FROM)") $(if $(DATA),--data "$(DATA)") $(if $(COMPETITION),--competition "$(COMPETITION)") $(if $(DATASET),--dataset "$(DATASET)") $(if $(YES),--yes)

submit: $(SETUP)  ## check predictions.csv, send it to Kaggle, wait for the score (COMPETITION= MESSAGE= YES=1)
	$(PYTHON) -m pipeline.kaggle.submit $(if $(COMPETITION),--competition "$(COMPETITION)") $(if $(MESSAGE),--message "$(MESSAGE)") $(if $(YES),--yes)

kernel: $(SETUP)  ## an offline Kaggle notebook of a run, rehearsed here (MODEL='a b' DATA= COMPETITION= HOURS= WHEELS='a b' NOTEBOOK=1); PUSH=1 also sends, submits it
	$(PYTHON) -m pipeline.kernel.make $(foreach run,$(MODEL),--model "$(run)") $(if $(DATA),--data "$(DATA)") $(if $(COMPETITION),--competition "$(COMPETITION)") $(if $(HOURS),--hours "$(HOURS)") $(if $(WHEELS),--wheels $(foreach name,$(WHEELS),"$(name)")) $(if $(MESSAGE),--message "$(MESSAGE)") $(if $(NOTEBOOK),--notebook) $(if $(PUSH),--push) $(if $(YES),--yes)

score: $(SETUP)  ## every metric of predictions.csv against held-back labels (SOLUTION=file)
	$(PYTHON) -m pipeline.submission.score $(if $(SOLUTION),--solution "$(SOLUTION)")
	$(PYTHON) -m pipeline.report.page --if-present

ablation: $(SETUP)  ## every row of a grid with every seed: train, predict, score, one table (GRID=name or file; DATASET= SOLUTION=)
	$(PYTHON) -m pipeline.experiments.ablation --grid "$(GRID)" $(if $(DATASET),--data "data/$(DATASET)") $(if $(SOLUTION),--solution "$(SOLUTION)")

report: $(SETUP)  ## rebuild finetuned_model/report.html from the run folder; RUNS='a b' compares runs in one page
	$(PYTHON) -m pipeline.report.page $(foreach run,$(RUNS),--run $(run))

attention: $(SETUP)  ## where models look, side by side (IMAGES='a.jpg b.jpg' RUNS='a b c')
	$(PYTHON) -m pipeline.report.attention $(if $(IMAGES),--images $(IMAGES)) $(if $(RUNS),--runs $(RUNS))

bench: $(BENCH)  ## speed beside the peers, one table (SIZE=small-224|beit-base-224|beit-large-384 BENCH_FLAGS='--batch-size 8')
	$(PYTHON) -m pipeline.benchmarks.benchmark $(if $(SIZE),--size $(SIZE)) $(BENCH_FLAGS) $(addprefix --peer tests.benchmarks.peers:,$(PEERS))

test: $(TESTS)  ## set up and run every test (under ten minutes on two cores)
	$(PYTHON) -m ruff check
	$(PYTHON) -m pytest

test-slow: $(TESTS)  ## the tests that take minutes
	$(PYTHON) -m pytest -m slow

test-gpu: $(TESTS)  ## what only a GPU can tell; without one every test is skipped
	$(PYTHON) -m pytest -m gpu

fuzz: $(TESTS)  ## damage every kind of file at random (FUZZ=cases of each), and kill and resume runs (KILLED_RUNS=)
	FUZZ=$(or $(FUZZ),2000) $(PYTHON) -m pytest tests/test_fuzz.py -s
	KILLED_RUNS=$(or $(KILLED_RUNS),40) $(PYTHON) -m pytest tests/test_resume.py -k killed_at_random -m slow -s

lint: $(TESTS)  ## format and check the code
	$(PYTHON) -m ruff format
	$(PYTHON) -m ruff check --fix
