# Every target is one line of `python ...`; pipeline/README.md lists them for systems without make.
# Without an active environment make creates and uses .venv; PYTHON=python uses the installed packages (Colab, Kaggle notebooks).

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
INSTALL = $(PYTHON) -m pip install --disable-pip-version-check --constraint constraints.txt --requirement
PEERS := image_folder_documented image_folder_best trainer_documented trainer_best trainer_compiled timm_loop pipeline_documented pipeline_best
export PYTHONUNBUFFERED := 1

# The variables of each target. Any other is an error, because make would silently ignore it.
TAKES_weights := WEIGHTS MODEL DATA
TAKES_data := FROM DATA COMPETITION DATASET CHANNELS LONGEST YES
TAKES_look := DATA OUTPUT RECIPE BACKBONE METRIC TARGET POSITIVE_CLASS NO_IMAGES
TAKES_submit := COMPETITION MESSAGE YES PREDICTIONS DATA MODEL RUN
TAKES_kernel := MODEL DATA COMPETITION HOURS TTA PRIOR ENGINE WHEELS MESSAGE NOTEBOOK PUSH YES
TAKES_score := SOLUTION PREDICTIONS DATA MODEL RUN
TAKES_ablation := GRID DATASET DATA SOLUTION PARALLEL
TAKES_report := MODEL RUN RUNS NO_IMAGES
TAKES_suspects := MODEL RUN DATA NO_IMAGES
TAKES_blend := RUNS OUTPUT
TAKES_attention := IMAGES MODEL RUN RUNS
TAKES_bench := SIZE BENCH_FLAGS PEERS
TAKES_fuzz := FUZZ KILLED_RUNS STRIKES
GOALS := $(or $(MAKECMDGOALS),help)
TAKEN := $(sort $(foreach goal,$(GOALS),$(TAKES_$(goal))))
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
UNKNOWN := $(filter-out PYTHON BASE_PYTHON SHELL MAKE% $(TAKEN),$(GIVEN))
ifneq ($(UNKNOWN),)
$(error make $(GOALS) does not take $(addsuffix =,$(UNKNOWN)); it takes: $(or $(addsuffix =,$(TAKEN)),nothing))
endif

ifneq ($(and $(value MODEL),$(value RUN)),)
$(error MODEL= and RUN= mean the same: give only one of them)
endif

check_python = $(1) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed, $(1) is %d.%d: $(2)" % v[:2])'

# shell_word: a value quoted for the shell. flag: a flag with that value, if it is given. MODEL= and RUN= mean the same.
shell_word = '$(subst ','\'',$(value $(1)))'
flag = $(if $(value $(1)),$(2) $(call shell_word,$(1)))
model = $(call flag,$(if $(value RUN),RUN,MODEL),$(1))
# Lists are split at spaces, so a name with spaces needs the python command. $(1): a variable, $(2): the command
check_list = $(foreach path,$($(1)),$(if $(wildcard $(path)),,$(error $(1): $(path) does not exist. If a name has spaces, use: $(2))))

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-base weights data look submit kernel score report suspects blend attention ablation bench test test-slow test-gpu fuzz lint

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(SETUP)  ## install the packages, into .venv unless an environment is active

.venv/bin/python:
	@$(call check_python,$(BASE_PYTHON),make $(GOALS) BASE_PYTHON=python3.12)
	$(BASE_PYTHON) -m venv .venv

$(SETUP): requirements.txt constraints.txt | $(filter .venv/bin/python,$(PYTHON))
	@$(call check_python,$(PYTHON),activate another environment)
	@echo "installing the packages (about 5 GB with a GPU build of torch, a few minutes)"
	$(INSTALL) requirements.txt
	@touch $@

$(TESTS): tests/requirements.txt $(SETUP)
	$(INSTALL) tests/requirements.txt
	@touch $@

$(BENCH): tests/benchmarks/requirements.txt $(SETUP)
	$(INSTALL) tests/benchmarks/requirements.txt
	@touch $@

demo: $(SETUP)  ## try everything on handwritten digits: train, predict, check, score, page
	$(PYTHON) -m pipeline.demo

demo-base: $(SETUP)  ## train the demo's pretrained base again, from random weights
	$(PYTHON) -m pipeline.demo --rebuild-base

weights: $(SETUP)  ## install released weights (WEIGHTS=drive id, link or zip; default: finetuned_model/release.yaml)
	$(PYTHON) -m pipeline.fetch.releases $(call flag,WEIGHTS,--weights) $(call flag,MODEL,--model) $(call flag,DATA,--data)

data: $(SETUP)  ## fill data/ (DATA=) with a Kaggle competition (COMPETITION=slug), your download (FROM=folder or archive) or a public set (DATASET=cifar10 ...); CHANNELS=red,green,blue joins files of one channel each, LONGEST=1024 limits the size of converted images
	$(PYTHON) -m pipeline.fetch.install $(call flag,FROM,--from) $(call flag,DATA,--data) $(call flag,COMPETITION,--competition) $(call flag,DATASET,--dataset) $(call flag,CHANNELS,--channels) $(call flag,LONGEST,--longest) $(if $(YES),--yes)

look: $(SETUP)  ## make a page about the data before training, in look/NAME/ (DATA= METRIC= TARGET= POSITIVE_CLASS= RECIPE= BACKBONE= OUTPUT= NO_IMAGES=1)
	$(PYTHON) -m pipeline.look.show $(call flag,DATA,--data) $(call flag,METRIC,--metric) $(call flag,TARGET,--target) $(call flag,POSITIVE_CLASS,--positive-class) $(call flag,RECIPE,--recipe) $(call flag,BACKBONE,--backbone) $(call flag,OUTPUT,--output) $(if $(NO_IMAGES),--no-images)

submit: $(SETUP)  ## check predictions.csv, send it to Kaggle, wait for the score (COMPETITION= MESSAGE= YES=1 PREDICTIONS= DATA= MODEL=)
	$(PYTHON) -m pipeline.kaggle.submit $(call flag,COMPETITION,--competition) $(call flag,MESSAGE,--message) $(if $(YES),--yes) $(call flag,PREDICTIONS,--predictions) $(call flag,DATA,--data) $(call model,--model)

kernel: $(SETUP)  ## make an offline Kaggle notebook of a run and test it here (MODEL='a b' DATA= COMPETITION= HOURS= TTA= PRIOR= ENGINE=openvino|openvino-int8 WHEELS='a b' NOTEBOOK=1); PUSH=1 also uploads and submits it
	$(call check_list,MODEL,python -m pipeline.kernel.make --model 'a run')$(PYTHON) -m pipeline.kernel.make $(foreach run,$(MODEL),--model $(run)) $(call flag,DATA,--data) $(call flag,COMPETITION,--competition) $(call flag,HOURS,--hours) $(call flag,TTA,--tta) $(call flag,PRIOR,--prior) $(call flag,ENGINE,--engine) $(if $(WHEELS),--wheels $(foreach name,$(WHEELS),"$(name)")) $(call flag,MESSAGE,--message) $(if $(NOTEBOOK),--notebook) $(if $(PUSH),--push) $(if $(YES),--yes)

score: $(SETUP)  ## compute every metric of predictions.csv from labels of the test images (SOLUTION=file PREDICTIONS= DATA= MODEL=)
	$(PYTHON) -m pipeline.submission.score $(call flag,SOLUTION,--solution) $(call flag,PREDICTIONS,--predictions) $(call flag,DATA,--data) $(call model,--model)
	$(PYTHON) -m pipeline.report.page --if-present $(or $(call model,--run),--of $(if $(value PREDICTIONS),$(call shell_word,PREDICTIONS),predictions.csv))

ablation: $(SETUP)  ## train, predict and score every row of a grid with every seed; one table (GRID=name or file; DATASET= or DATA=, SOLUTION= PARALLEL=cards)
	$(PYTHON) -m pipeline.experiments.ablation --grid $(call shell_word,GRID) $(if $(value DATASET),--data data/$(call shell_word,DATASET)) $(call flag,DATA,--data) $(call flag,SOLUTION,--solution) $(call flag,PARALLEL,--parallel)

report: $(SETUP)  ## rebuild a run's report.html from its folder (MODEL=, default finetuned_model); RUNS='a b' compares runs in one page; NO_IMAGES=1: without images, to send it
	$(call check_list,RUNS,python -m pipeline.report.page --run 'run a' --run 'run b')$(PYTHON) -m pipeline.report.page $(if $(RUNS),$(foreach run,$(RUNS),--run $(run)),$(call model,--run)) $(if $(NO_IMAGES),--no-images)

suspects: $(SETUP)  ## find labels that look wrong, from a run of folds: a table, and a page where you decide (MODEL=runs/folds DATA= NO_IMAGES=1)
	$(PYTHON) -m pipeline.cleaning.suspects $(call model,--model) $(call flag,DATA,--data) $(if $(NO_IMAGES),--no-images)

blend: $(SETUP)  ## find weights to average several runs, on rows that none of them was trained on; writes runs/blend (RUNS='a b c' OUTPUT=)
	$(call check_list,RUNS,python -m pipeline.folds.blend --runs 'run a' 'run b')$(PYTHON) -m pipeline.folds.blend --runs $(RUNS) $(call flag,OUTPUT,--output)

attention: $(SETUP)  ## show where models look in an image, side by side (IMAGES='a.jpg b.jpg' MODEL= or RUNS='a b c')
	$(call check_list,IMAGES,python -m pipeline.report.attention --images 'an image.jpg' --runs 'a run')$(PYTHON) -m pipeline.report.attention $(if $(IMAGES),--images $(IMAGES)) $(if $(RUNS),--runs $(RUNS),$(call model,--runs))

bench: $(BENCH)  ## measure speed, compared with other libraries; one table (SIZE=small-224|beit-base-224|beit-large-384 BENCH_FLAGS='--batch-size 8')
	$(PYTHON) -m pipeline.benchmarks.benchmark $(if $(SIZE),--size $(SIZE)) $(BENCH_FLAGS) $(addprefix --peer tests.benchmarks.peers:,$(PEERS))

test: $(TESTS)  ## set up and run every quick test (about nine minutes on two cores)
	$(PYTHON) -m ruff check
	$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(TESTS)  ## run the tests that take minutes
	$(PYTHON) -m pytest -m slow

test-gpu: $(TESTS)  ## run the tests that need a GPU; without one they are skipped
	$(PYTHON) -m pytest -m gpu

fuzz: $(TESTS)  ## read randomly damaged files (FUZZ=number of each kind), kill and resume runs (KILLED_RUNS=), kill commands and let disks fail (STRIKES=)
	FUZZ=$(or $(FUZZ),2000) $(PYTHON) -m pytest tests/test_fuzz.py tests/test_fuzz_hostile.py -s
	KILLED_RUNS=$(or $(KILLED_RUNS),40) $(PYTHON) -m pytest tests/test_resume.py -k killed_at_random -m slow -s
	STRIKES=$(or $(STRIKES),100) $(PYTHON) -m pytest tests/test_struck.py -m slow -s

lint: $(TESTS)  ## format and check the code
	$(PYTHON) -m ruff format
	$(PYTHON) -m ruff check --fix
