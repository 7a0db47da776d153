"""How far results of two roads may lie apart: it follows from the precision that was computed in, and from
nothing else.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.files import read_json

# Of a probability of a small model (logits below 10). bf16 keeps 8 bits of a number, fp16 11, and errors of
# many layers add up.
PROBABILITY = {"fp32": 1e-4, "fp16": 5e-4, "bf16": 2e-3}


def of_run(run: Path) -> float:
    """What a probability of the run in folder `run` may differ by from one computed in float32, by the
    precision it says it has used.
    """
    return PROBABILITY[read_json(run / "run.json")["precision"]]
