"""Every file name of a run folder, once. Paths are relative to the run's folder."""

from __future__ import annotations

RECORD = "run.json"  # what the run says of itself; written last: its presence means that the run is complete
METRICS, TIMING = "metrics.jsonl", "timing.jsonl"  # a line an epoch: what is deterministic, what is not
VAL_TABLE, VAL_VALUES = "val_predictions.csv", "val_probs.npy"  # validation rows: texts; probabilities or numbers
OOF_TABLE, OOF_VALUES = "oof.csv", "oof.npy"  # the same of every training row, by the fold that did not see it
DISAGREEMENT = "disagreement.csv"  # of each row how far apart the models of the folds are (make suspects)
SCORES = "scores.json"  # of the last make score
FLOORS = "floors.json"  # questions: what less knowledge gives
PAGE, THUMBNAILS = "report.html", "thumbnails.jsonl"
ADAPTER_DIR = "model_lora"
HEAD_FILE = "head.safetensors"  # of a model with two backbones; otherwise the head is in the backbone's or the adapter's file
STATE_DIR = "state"  # what a run needs to go on; never shipped
COPIES, COPY_NAME = "checkpoints", "epoch_{:04d}"  # models of single epochs (checkpoint.keep_every): what training changes of them
START, KEPT = "state/start.json", "state/kept.json"  # what a run was started with; which weights lie in its folder until it is complete
FOLDS_FILE, FOLDS_START = "folds.csv", "state/folds.json"  # who is in which fold; what a run of several folds was started with
INSTALLING = ".installing"  # lies in a run folder while a release is moved in: until it is gone, nothing there counts
INSTALLED = "release.installed.json"  # what `make weights` installed there, and from where
