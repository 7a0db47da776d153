"""The target: how many outputs a model needs, labels -> arrays, logits -> predictions, predictions -> label
texts.

A label is a text, as it is written in the data. The kinds are scikit-learn's (User guide, "Types of target"),
and `ordinal`:

    multiclass   one of several classes            one output per class, softmax
    binary       the positive class, or not        one output, sigmoid
    multilabel   any number of labels              one output per label, sigmoid
    ordinal      one of several grades in order    one output per grade, softmax; the expected grade, rounded
    continuous   one or several numbers            one output per number, trained on scaled numbers
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from pipeline.errors import UserError, raise_all
from pipeline.shapes import FLAG, NUMBER, TEXT, differences_from

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["multiclass", "binary", "multilabel", "ordinal", "continuous"]
KINDS: tuple[str, ...] = get_args(Kind)
_NUMBERS = {key: [NUMBER] for key in ("center?", "scale?", "low?", "high?")}
_SHAPE = {
    "kind": TEXT,
    "names": [TEXT],
    "positive?": [TEXT],
    "separator?": TEXT,
    "threshold?": NUMBER,
    "may_be_empty?": FLAG,
    **_NUMBERS,
}
NUM_STRATA = 10  # strata of numbers: tenths of the sorted rows


@dataclass(frozen=True)
class Target:
    """The meaning of a competition's labels.

    Arrays below have N rows and O = `num_outputs` columns, in the order of `names`.
    """

    kind: Kind
    # classes; grades, lowest first; labels; columns of numbers; binary: (negative, positive)
    names: tuple[str, ...]
    positive: tuple[str, ...] = ()  # binary: the label texts that count as positive
    separator: str = " "  # multilabel and several numbers: between the parts of one label text
    threshold: float = 0.5  # multilabel: the probability from which a label is written
    # multilabel: an image may have no label; if not, the most probable one is always written
    may_be_empty: bool = False
    center: tuple[float, ...] = ()  # continuous: mean of each column; number = scaled number * scale + center
    scale: tuple[float, ...] = ()  # continuous: standard deviation of each column
    low: tuple[float, ...] = ()  # continuous: smallest training number; predictions are clipped to low..high
    high: tuple[float, ...] = ()

    @property
    def num_outputs(self) -> int:
        """Number of model outputs."""
        return 1 if self.kind == "binary" else len(self.names)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Name of each output; for a binary target the positive class."""
        return self.names[1:] if self.kind == "binary" else self.names

    @property
    def is_choice(self) -> bool:
        """True where exactly one of `names` is right, so that the probabilities sum to 1."""
        return self.kind in ("multiclass", "ordinal")

    @property
    def grades(self) -> np.ndarray:
        """How far each grade is above the lowest: (O,) float64. For the grades 1, 2, 10 it is 0, 1, 9.

        Grades that are all words count 0, 1, 2, ... NaN: a word among numbers.
        """
        import numpy as np

        numbers = [finite_number(name) for name in self.names]
        lowest = min((number for number in numbers if number is not None), default=None)
        if lowest is None:
            return np.arange(len(self.names), dtype=np.float64)
        # The distance of two numbers above 2^53 is exact only before it becomes a float
        return np.array([math.nan if number is None else float(number - lowest) for number in numbers])

    @property
    def half_way(self) -> np.ndarray:
        """The number half-way between one of `grades` and the next: (O - 1,) float64."""
        grades = self.grades
        return (grades[1:] + grades[:-1]) / 2

    def describe(self) -> str:
        """Return the target in a few words: `5 grades, 0 to 4`."""
        count = len(self.names)
        return {
            "multiclass": f"one of {count:,} classes",
            "binary": f"the probability of {self.names[-1]!r}",
            "multilabel": f"any of {count:,} labels",
            "ordinal": f"{count:,} grades, {self.names[0]} to {self.names[-1]}",
            "continuous": "a number" if count == 1 else f"{count:,} numbers",
        }[self.kind]

    # ---- labels -> arrays ----

    def encode(self, labels: Sequence[str]) -> np.ndarray:
        """Return labels as an array.

        multiclass, ordinal: (N,) int64 positions in `names`; binary, multilabel: (N, O) float32 of 0 and 1;
        continuous: (N, O) float32; of several numbers some may be missing, they are NaN.

        Raises:
            UserError: labels that the target does not know, or that are not numbers; the first few are
                listed.
        """
        import numpy as np

        if self.is_choice:
            index = {name: number for number, name in enumerate(self.names)}
            self._refuse(
                [label for label in labels if label not in index],
                f"is not one of the {len(index):,} {self._noun()}",
            )
            return np.array([index[label] for label in labels], dtype=np.int64)
        if self.kind == "binary":
            return np.array([[label in self.positive] for label in labels], dtype=np.float32).reshape(
                len(labels), 1
            )
        if self.kind == "multilabel":
            index = {name: number for number, name in enumerate(self.names)}
            encoded = np.zeros((len(labels), len(index)), dtype=np.float32)
            unknown = []
            for row, label in enumerate(labels):
                parts = self.parts(label)
                unknown += [part for part in parts if part not in index]
                encoded[row, [index[part] for part in parts if part in index]] = 1
            self._refuse(unknown, f"is not one of the {len(index):,} labels")
            return encoded
        cells = [label.split(self.separator) if self.num_outputs > 1 else [label] for label in labels]
        bad = [
            label for label, row in zip(labels, cells, strict=True) if not _are_numbers(row, self.num_outputs)
        ]
        self._refuse(bad, "is not a number")
        numbers = [[cell.strip() or "nan" for cell in row] for row in cells]
        with np.errstate(over="ignore"):
            encoded = np.array(numbers, dtype=np.float32).reshape(len(labels), self.num_outputs)
        large = np.isinf(encoded).any(axis=1)
        self._refuse([labels[row] for row in np.flatnonzero(large)], "is too large (the limit is 3e38)")
        return encoded

    def parts(self, label: str) -> list[str]:
        """Return the labels in one label text of a multilabel target."""
        return [part.strip() for part in label.split(self.separator) if part.strip()]

    def scaled(self, numbers: np.ndarray) -> np.ndarray:
        """Return (N, O) float32 numbers as the model is trained on them.

        Only for a continuous target. They have mean 0 and standard deviation 1 over the training rows; NaN
        where a number is missing.
        """
        import numpy as np

        return ((numbers - np.array(self.center)) / np.array(self.scale)).astype(np.float32)

    def fitted(self, labels: Sequence[str]) -> Target:
        """Return this target with scale and range of the training numbers.

        Other kinds are returned unchanged.

        Raises:
            UserError: a column without any number.
        """
        import numpy as np

        if self.kind != "continuous":
            return self
        numbers = self.encode(labels).astype(np.float64)
        bare = [name for name, column in zip(self.names, numbers.T, strict=True) if np.isnan(column).all()]
        if len(numbers) and bare:
            raise UserError(
                f"no training row has a number in {', '.join(map(repr, bare[:8]))}: fill in a cell of that "
                "column, or, if its rows all validate, try another --seed"
            )
        deviation = np.nanstd(numbers, axis=0)
        scale = np.where(deviation > 0, deviation, 1.0)
        columns = {
            "center": np.nanmean(numbers, axis=0),
            "scale": scale,
            "low": np.nanmin(numbers, axis=0),
            "high": np.nanmax(numbers, axis=0),
        }
        return replace(self, **{name: tuple(map(float, values)) for name, values in columns.items()})

    # ---- logits -> predictions -> label texts ----

    def activate(self, logits: np.ndarray) -> np.ndarray:
        """Return (N, O) float32 predictions: probabilities, or numbers within the range of training.

        For one class or grade every row sums to 1.
        """
        import numpy as np

        exact = np.asarray(logits, dtype=np.float64)
        if self.is_choice:
            exponentials = np.exp(exact - exact.max(axis=1, keepdims=True))
            return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
        if self.kind == "continuous":
            return np.clip(exact * self.scale + self.center, self.low, self.high).astype(np.float32)
        return (0.5 * (1 + np.tanh(exact / 2))).astype(np.float32)  # the logistic function, without overflow

    def decode(self, values: np.ndarray) -> list[str]:
        """Return N label texts for (N, O) predictions, written as in the data."""
        import numpy as np

        values = np.asarray(values)
        if self.kind == "multilabel":
            return [
                self.separator.join(self.names[index] for index in np.flatnonzero(row))
                for row in self.chosen(values)
            ]
        if self.kind == "continuous":
            return [self.separator.join(f"{value:.7g}" for value in row) for row in values.tolist()]
        return [self.names[index] for index in self.chosen(values)]

    def chosen(self, values: np.ndarray) -> np.ndarray:
        """Return the decision for (N, O) predictions.

        (N,) int64 positions in `names`; multilabel: (N, O) bool; continuous: the numbers. A grade is the one
        nearest to the expected grade: where errors count by distance, this is better than the most probable
        grade.
        """
        import numpy as np

        values = np.asarray(values)
        if self.kind == "multiclass":
            return values.argmax(axis=1)
        if self.kind == "binary":
            return (values[:, 0] >= 0.5).astype(np.int64)
        if self.kind == "ordinal":
            return np.searchsorted(self.half_way, self.expected_grade(values), side="right").astype(np.int64)
        if self.kind == "multilabel":
            chosen = values >= self.threshold
            empty = np.flatnonzero(~chosen.any(axis=1))
            if not self.may_be_empty:
                chosen[empty, values[empty].argmax(axis=1)] = True
            return chosen
        return values

    def expected_grade(self, values: np.ndarray) -> np.ndarray:
        """Return the expected grade of (N, O) probabilities: (N,) float64, the sum of `grades` * p.

        Only for an ordinal target.
        """
        import numpy as np

        return np.asarray(values, dtype=np.float64) @ self.grades

    def confidence(self, values: np.ndarray) -> list[float | None]:
        """Return the confidence of (N, O) predictions: the probability of the decision.

        For several labels it is the mean over labels; for numbers None.
        """
        import numpy as np

        values = np.asarray(values)
        if self.kind == "continuous":
            return [None] * len(values)
        if self.is_choice:
            return values[np.arange(len(values)), self.chosen(values)].tolist()
        return np.maximum(values, 1 - values).mean(axis=1).tolist()

    def prior(self, labels: Sequence[str]) -> np.ndarray:
        """Return the prediction for an image that cannot be read: (O,) float32.

        It holds the class frequencies, or the mean number, of the training `labels`.
        """
        import numpy as np

        encoded = self.encode(labels)
        if self.is_choice:
            counts = np.bincount(encoded, minlength=self.num_outputs).astype(np.float64)
            return (counts / counts.sum()).astype(np.float32)
        return np.nanmean(encoded, axis=0, dtype=np.float64).astype(np.float32)

    # ---- rows ----

    def strata(self, labels: Sequence[str]) -> list[str]:
        """Return one stratum name per row; a split that is stratified by them is fair to every label.

        The stratum is the class or grade; for several labels the rarest label of the row; for numbers the
        tenth of the sorted rows (of the first column; rows without that number are sorted last).
        """
        import numpy as np

        if self.kind == "multilabel":
            encoded = self.encode(labels)
            frequency = encoded.sum(axis=0)
            rarity = [(frequency[index], name) for index, name in enumerate(self.names)]
            return [
                min((rarity[index] for index in np.flatnonzero(row)), default=(0, ""))[1] for row in encoded
            ]
        if self.kind == "continuous":
            rank = self.encode(labels)[:, 0].argsort(kind="stable").argsort(kind="stable")
            return [str(place * NUM_STRATA // len(labels)) for place in rank.tolist()]
        if self.kind == "binary":
            return [self.names[label in self.positive] for label in labels]
        return list(labels)

    def counts(self, labels: Sequence[str]) -> dict[str, int]:
        """Return the number of rows of each class, grade or label, in the order of `names`.

        {} for numbers.
        """
        if self.kind == "continuous":
            return {}
        encoded = self.encode(labels)
        if self.is_choice:
            return {name: int((encoded == index).sum()) for index, name in enumerate(self.names)}
        totals = [int(total) for total in encoded.sum(axis=0)]
        return dict(
            zip(
                self.names,
                [len(labels) - totals[0], *totals] if self.kind == "binary" else totals,
                strict=True,
            )
        )

    def record(self) -> dict[str, Any]:
        """Return the target as run.json stores it; `Target.read` reads it."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def read(cls, record: dict[str, Any], where: str) -> Target:
        """Return the target that `record` wrote; `where` names its file in messages.

        Raises:
            UserError: the record is damaged.
        """
        damaged = "changed by hand, or damaged"
        if (
            not isinstance(record, dict)
            or record.get("kind") not in KINDS
            or not set(record) <= set(cls.__dataclass_fields__)
        ):
            raise UserError(
                f"{where}: target: expected one of the kinds {', '.join(KINDS)} with its keys: {damaged}"
            )
        values = {name: value for name, value in record.items() if value is not None}
        raise_all(differences_from(_SHAPE, values, "target"), f"{where}: {damaged}:")
        target = cls(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        )
        raise_all(target._contradictions(), f"{where}: {damaged}:")
        return target

    def _contradictions(self) -> list[str]:
        """Return the values that contradict each other, one message each."""
        problems = []
        if not self.names or len(set(self.names)) < len(self.names):
            problems.append("target.names: expected different names")
        if self.kind == "binary" and len(self.names) != 2:
            problems.append(
                f"target.names: expected the negative and the positive class, found {len(self.names)} names"
            )
        if self.kind == "ordinal" and not (self.half_way > self.grades[:-1]).all():
            problems.append("target.names: expected grades, lowest first")
        if self.kind == "multilabel" and not self.separator:
            problems.append("target.separator: expected a text")
        for name in ("center", "scale", "low", "high") if self.kind == "continuous" else ():
            values = getattr(self, name)
            if len(values) != len(self.names):
                problems.append(f"target.{name}: expected {len(self.names)} numbers, found {len(values)}")
            if name == "scale" and not all(value > 0 for value in values):
                problems.append(f"target.scale: expected numbers above 0, found {list(values)!r:.80}")
        return problems

    def _noun(self) -> str:
        return "grades" if self.kind == "ordinal" else "classes"

    def _refuse(self, labels: Sequence[str], what: str) -> None:
        if labels:
            shown = ", ".join(map(repr, dict.fromkeys(labels[:5])))
            raise UserError(
                f"the label {shown} {what}: "
                f"{', '.join(self.names[:8])}{' ...' if len(self.names) > 8 else ''}"
            )


def _are_numbers(cells: Sequence[str], count: int) -> bool:
    """Return True for `count` numbers, at least one of them written and the others empty."""
    written = [cell for cell in cells if cell.strip()]
    return len(cells) == count and bool(written) and all(finite_number(cell) is not None for cell in written)


def finite_number(cell: str) -> int | float | None:
    """Return the finite number in a cell; None for anything else.

    A whole number such as 12 or 12.0 is an exact int: float64 loses digits above 2^53.
    """
    try:
        value = float(cell)
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    whole = re.fullmatch(r"\s*([+-]?\d+)(\.0*)?\s*", cell)
    return int(whole[1]) if whole else value


def multiclass(class_names: Sequence[str]) -> Target:
    """Return the target for one of `class_names`."""
    return Target("multiclass", tuple(class_names))
