"""The names of all files in a run folder, relative to it."""

from __future__ import annotations

RECORD = "run.json"  # the run's record; written last, so it marks the run as complete
# One line per epoch: deterministic values; times and memory
METRICS, TIMING = "metrics.jsonl", "timing.jsonl"
# Validation rows: texts; probabilities or numbers
VAL_TABLE, VAL_VALUES = "val_predictions.csv", "val_probs.npy"
VAL_COLUMNS = ("id", "path", "label", "predicted", "confidence")  # of that table
# The same for every training row, predicted by the fold not trained on it
OOF_TABLE, OOF_VALUES = "oof.csv", "oof.npy"
TEST_STEM = "test"  # test.npy, test.json: kept predictions of the test images
DISAGREEMENT = "disagreement.csv"  # for each row how much the models of the folds differ (make suspects)
SCORES = "scores.json"  # result of the last make score
FLOORS = "floors.json"  # vqa: baselines (majority answer, question only, shuffled images)
PAGE, THUMBNAILS = "report.html", "thumbnails.jsonl"
ADAPTER_DIR = "model_lora"
# Head of a model with two backbones; otherwise it is in the backbone's or the adapter's file
HEAD_FILE = "head.safetensors"
# The model in 8 bits (inference.py --engine openvino-int8) and a record of what made it
INT8_DIR = "openvino-int8"
COPIES, COPY_NAME = "checkpoints", "epoch_{:04d}"  # trained weights of single epochs (checkpoint.keep_every)
# Settings at the start; which weights an unfinished run's folder holds
START, KEPT = "state/start.json", "state/kept.json"
# Fold of each row; settings at the start of a run of folds
FOLDS_FILE, FOLDS_START = "folds.csv", "state/folds.json"
INSTALLING = ".installing"  # exists while a release is moved into a run folder, which is not valid until then
INSTALLED = "release.installed.json"  # what `make weights` installed, and from where
