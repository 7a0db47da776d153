"""Check that the recipe's training settings suit the target, before anything is loaded."""

from __future__ import annotations

from pipeline.errors import raise_all
from pipeline.recipe import Recipe
from pipeline.targets.target import Target

# (section, key): the value that turns it off, the kinds of target that allow it, and these as text
CLASSES = ("multiclass",), "one of several classes"
MIXED = ("multiclass", "binary", "multilabel"), "classes, a probability and several labels per image"
SUITS = {
    ("augmentation", "mixup"): (0, *MIXED),
    ("augmentation", "cutmix"): (0, *MIXED),
    ("data", "sampling"): ("rows", *CLASSES),
    ("data", "pseudo_labels"): (None, *CLASSES),
    ("optimizer", "logit_adjustment"): (0, *CLASSES),
}
LOSSES = {"auto": None, "focal": MIXED, "asymmetric": (("multilabel",), "several labels per image")}


def check_suits(recipe: Recipe, target: Target) -> None:
    """Check that the recipe's settings suit the target.

    Raises:
        UserError: settings that have no meaning for this target; lists all of them.
    """
    problems = []
    for (section, key), (off, kinds, words) in SUITS.items():
        value = getattr(getattr(recipe, section), key)
        if value != off and target.kind not in kinds:
            problems.append(_problem(f"{section}.{key}", value, words, off))
    suited = LOSSES[recipe.optimizer.loss]
    if suited is not None and target.kind not in suited[0]:
        problems.append(_problem("optimizer.loss", recipe.optimizer.loss, suited[1], "auto"))
    raise_all(problems, f"the recipe does not suit the labels ({target.describe()}):")


def _problem(key: str, value: object, words: str, off: object) -> str:
    return f"{key} {value}: it is for {words}; leave it out (--set {key}={'null' if off is None else off})"
