"""Predictions of any kind (validation rows, test images, folds, blends): ids x outputs, with their target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.files import read_array, write_array
from pipeline.tables import write_table
from pipeline.targets.target import Target
from pipeline.wording import counted, quoted

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ID_COLUMN = "id"
# Options for pandas: the id 0012 and a class called NA stay unchanged
TEXT = {"dtype": str, "keep_default_na": False}


@dataclass(frozen=True)
class Predictions:
    """`values[i]` (num_outputs float32: probabilities, or numbers) belongs to `ids[i]`.

    Every id occurs once.
    """

    ids: tuple[str, ...]
    values: np.ndarray  # (N, O) float32
    target: Target
    logits: np.ndarray | None = None  # (N, O) float32, of a single model

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            ValueError: ids and values do not fit each other, or an id occurs twice.
        """
        if self.values.shape != (len(self.ids), self.target.num_outputs):
            raise ValueError(
                f"values of shape {self.values.shape} for {len(self.ids)} ids and {self.target.num_outputs} "
                "outputs"
            )
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("an id occurs twice")

    @classmethod
    def of_images(
        cls, ids: Sequence[str], logits: np.ndarray, target: Target, views: str = "mean"
    ) -> Predictions:
        """Return predictions from (M, O) `logits`, one row per image, of M `ids`.

        Several images of one id are merged as in `of_values`.

        Raises:
            ValueError: the number of rows is not that of ids.
        """
        values = target.activate(logits)
        if len(set(ids)) == len(ids):
            return cls(tuple(ids), values, target, logits)
        return cls.of_values(ids, values, target, views)

    @classmethod
    def of_values(
        cls,
        ids: Sequence[str],
        values: np.ndarray,
        target: Target,
        views: str = "mean",
        trusted: np.ndarray | None = None,
    ) -> Predictions:
        """Return predictions from (M, O) predictions, one row per image, of M `ids`.

        Several images of one id (channels, slices, views) are merged by `views`: the mean, or the max of each
        output. `trusted`: rows of images that could be read; other rows count only for ids without such a
        row.

        Raises:
            ValueError: the number of rows is not that of ids.
        """
        import numpy as np

        numbers = {name: number for number, name in enumerate(dict.fromkeys(ids))}
        place = np.array([numbers[name] for name in ids], dtype=np.int64)
        counts = np.ones(len(place), dtype=bool)
        if trusted is not None:
            counts[:] = False
            counts[trusted] = True
            counts |= ~np.isin(place, place[trusted])
        merged = np.full((len(numbers), values.shape[1]), -np.inf)
        if views == "max":
            np.maximum.at(merged, place[counts], values[counts])
            if target.is_choice:
                merged /= merged.sum(axis=1, keepdims=True)
        else:
            merged[:] = 0
            np.add.at(merged, place[counts], values[counts])
            merged /= np.bincount(place[counts], minlength=len(numbers))[:, None]
        return cls(tuple(numbers), merged.astype(np.float32), target)

    def aligned(self, ids: Sequence[str]) -> Predictions:
        """Return the same predictions for `ids`, in their order.

        Raises:
            UserError: some of them have no prediction.
        """
        row_of = {name: row for row, name in enumerate(self.ids)}
        if missing := [name for name in ids if name not in row_of]:
            raise UserError(f"no prediction for {counted(len(missing), 'id')}: {quoted(missing)}")
        rows = [row_of[name] for name in ids]
        return replace(
            self,
            ids=tuple(ids),
            values=self.values[rows],
            logits=None if self.logits is None else self.logits[rows],
        )

    def frame(self) -> pd.DataFrame:
        """Return a table with the ids and one float32 column per output."""
        import pandas as pd

        table = pd.DataFrame(self.values, columns=list(self.target.output_names))
        table.insert(0, ID_COLUMN, list(self.ids), allow_duplicates=True)
        return table

    def save(self, path: Path) -> None:
        """Write the values to `path`.npy and the ids to `path`.csv, each completely or not at all."""
        write_table(path.with_suffix(".csv"), (ID_COLUMN,), ((row_id,) for row_id in self.ids))
        write_array(path.with_suffix(".npy"), self.values)

    @classmethod
    def load(cls, path: Path, target: Target) -> Predictions:
        """Return the predictions that `save` wrote.

        Raises:
            UserError: a file is missing or damaged, or they do not fit each other or the target.
        """
        import pandas as pd

        try:
            ids = tuple(pd.read_csv(path.with_suffix(".csv"), **TEXT)[ID_COLUMN])
            return cls(ids, read_array(path.with_suffix(".npy"), (len(ids), target.num_outputs)), target)
        except UserError:
            raise
        except FileNotFoundError as error:
            raise UserError(
                f"{error.filename} does not exist: predictions are the two files {path}.csv and {path}.npy"
            ) from None
        except (ValueError, KeyError, OSError, EOFError) as error:
            raise UserError(f"{path}.csv and {path}.npy hold no predictions of this run: {error}") from None
