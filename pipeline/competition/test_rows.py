"""Find the images to predict, in the order of the sample submission or of their names, and check the sample's
classes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from shlex import quote

from pipeline.competition.folders import (
    DataFolder,
    absent,
    check_whole,
    hide_command,
    natural_key,
    plain_name,
)
from pipeline.competition.id_columns import find_ids, without_id_name
from pipeline.competition.id_styles import file_name, short_ids
from pipeline.competition.ids import ImageIndex, link_advice, settled
from pipeline.competition.sample import check_sample_ids, refuse_excerpt, refuse_labelled
from pipeline.competition.sources import Source, Sources, headerless
from pipeline.competition.subjects import Resolved, resolve
from pipeline.errors import UserError, raise_all
from pipeline.forms.form import SubmissionForm
from pipeline.forms.recognise import made_up, recognise
from pipeline.tables import Table
from pipeline.targets.evidence import SampleEvidence
from pipeline.targets.target import Target, multiclass
from pipeline.wording import capped, counted, numbered, quoted

FEW = 0.1  # share of the ids that may have no image in a whole download; more are in another folder
MOST_FILES = 50  # in a command to paste


@dataclass(frozen=True)
class TestImages:
    """The rows to predict.

    `ids[i]` (may repeat in a long sample) has the images `images[i]` (paths in the data folder).
    """

    __test__ = False  # pytest must not collect this class

    ids: Sequence[str] = ()  # one per row of the sample
    images: Sequence[tuple[str, ...]] = ()
    sample: Source | None = None
    resolved: Resolved | None = None
    source: str = ""
    notes: list[str] = field(default_factory=list)
    columns: tuple[str, str] = ("id", "label")  # of the file, without a sample submission

    @property
    def num_images(self) -> int:
        """Number of different images to predict."""
        return len({image for images in self.images for image in images})

    def subjects(self) -> list[tuple[str, tuple[str, ...]]]:
        """Return every id once, in the order of the file, with its images."""
        return list(dict(zip(self.ids, self.images, strict=True)).items()) if self.images else []


def find_test_images(
    folder: DataFolder,
    sources: Sources,
    sample: Source | None,
    index: ImageIndex,
    taken: Collection[str],
    label_names: Sequence[str] | None,
    required: bool,
    label_column: str = "",
    group_column: str = "",
) -> TestImages:
    """Find the images to predict. `index`: finds images in test folders. `taken`: the labelled images.

    `label_names`: all labels (None: unknown). `required`: raise if there are no test images. `label_column`:
    the name of the labels' column. `group_column`: the column of labelled ids with several images each.

    Raises:
        UserError: an id has no image or several, several folders may hold the test images, or there are none
            but they are `required`.
    """
    if sample:
        return _from_sample(folder, sources, sample, index, taken, label_names, required)
    if listed_there := _from_test_table(folder, sources, index, taken, label_column or "label", group_column):
        return listed_there
    dirs = folder.parts.named("test")
    if len(dirs) > 1:
        raise UserError(
            f"{folder.root}: {' and '.join(dirs)} may all be the test images; "
            f"{hide_command(folder.root, dirs)}"
        )
    if not dirs:
        if required:
            raise absent(folder, "test images", "expected a folder test/ (or test_images/, ...) with images")
        return TestImages(source="none found; needed for predictions only")
    check_whole(folder, [dirs[0].split("/")[0]])
    images = sorted(index.images, key=lambda image: (natural_key(file_name(image)), image))
    ids, style = short_ids(["test/" + image[len(dirs[0]) + 1 :] for image in images])
    return TestImages(
        ids,
        [(image,) for image in images],
        source=f"{dirs[0]}/; no sample submission: columns id,label, ids are {style}",
    )


def form_of(test: TestImages, target: Target | None, metric: str | None) -> SubmissionForm | None:
    """Return the form of predictions.csv; None without a sample submission and test images."""
    target = target or multiclass(())
    if test.sample and test.resolved:
        resolved = test.resolved
        if metric is None:  # without training data: a value for each label is a probability
            several = resolved.row_labels or len(test.sample.table.columns) > 2
            metric = "log_loss" if several and target.kind != "continuous" else "accuracy"
        return recognise(
            test.sample.table, resolved.id_column, target, metric, resolved.subjects, resolved.row_labels
        )
    return made_up(target, metric or "accuracy", tuple(test.ids), test.columns) if test.ids else None


def sample_evidence(test: TestImages) -> SampleEvidence | None:
    """Return the columns and values of the sample submission for choosing the target, without its ids."""
    if test.sample is None or test.resolved is None:
        return None
    table = test.sample.table
    columns = tuple(name for name in table.columns if name != test.resolved.id_column)
    cells = tuple(zip(*(table.column(name) for name in columns), strict=True))
    return SampleEvidence(test.sample.name, columns, cells, test.resolved.row_labels)


def _from_sample(
    folder: DataFolder,
    sources: Sources,
    sample: Source,
    index: ImageIndex,
    taken: Collection[str],
    label_names: Sequence[str] | None,
    required: bool,
) -> TestImages:
    """Find the images of the sample's ids: in the test folders, or among the unlabelled images of a shared
    folder.
    """
    table = sample.table
    others = [source for source in sources.found if source.name != sample.name and source.role != "answers"]
    others.sort(key=lambda source: source.role != "test")
    resolved = resolve(table, index, others, label_names)
    if not resolved.num_found:
        unlabelled = [image for image in folder.of_part("train", "val", "") if image not in taken]
        shared = ImageIndex(folder, unlabelled)
        if unlabelled and (found := resolve(table, shared, others, label_names)).num_found:
            index, resolved = shared, found
    elif any(not images for images in resolved.images):
        index, resolved = _with_other_folders(folder, table, others, index, resolved, taken, label_names)
    check_sample_ids(table, resolved.id_column)
    if resolved.match and (hidden := without_id_name(table, resolved.match, index)):
        raise hidden
    ids = resolved.subjects or tuple(table.column(resolved.id_column))
    columns = [name for name in table.columns if name != resolved.id_column]
    what = columns[0] if len(columns) == 1 else f"{len(columns)} columns"
    if not resolved.num_found and not index.images:
        if required:
            refuse_labelled(folder, sample, resolved.id_column, taken)
            raise absent(
                folder,
                "test images",
                f"expected a folder test/ (or test_images/, ...) with the images of {sample.name}",
            )
        return TestImages(
            ids,
            sample=sample,
            resolved=resolved,
            source=f"no images of {sample.name} found; needed for predictions only",
        )
    _check_images(sample, resolved, index)
    if required:
        refuse_excerpt(sample, resolved.id_column, sources, index, what)
    used = sorted(
        {image.rpartition("/")[0].split("/")[0] for images in resolved.images for image in images} - {""},
        key=natural_key,
    )
    notes = [f"images in {', '.join(f'{name}/' for name in used) or 'the data folder'}, {resolved.says}"]
    part = [image for image in folder.of_part("test") if image.split("/")[0] in used]
    predicted = {image for images in resolved.images for image in images}
    if left := len(part) - len(predicted) if predicted <= set(part) else 0:
        notes.append(f"{counted(left, 'image')} not in {sample.name}, not predicted")
    notes += table.notes
    source = f"ids and order from {sample.name} ({resolved.id_column} -> {what})"
    return TestImages(ids, resolved.images, sample, resolved, source, notes)


def _with_other_folders(
    folder: DataFolder,
    table: Table,
    others: Sequence[Source],
    index: ImageIndex,
    resolved: Resolved,
    taken: Collection[str],
    label_names: Sequence[str] | None,
) -> tuple[ImageIndex, Resolved]:
    """Look for ids that no test folder holds also in folders of no known part (`holdout/`).

    Index and result are unchanged if that does not find one unlabelled image for every id.
    """
    more = [image for image in folder.of_part("") if image not in taken]
    wider = ImageIndex(folder, [*index.images, *more])
    found = resolve(table, wider, others, label_names) if more else resolved
    if not found.match or found.match.num_unique < len(table.cells):
        return index, resolved
    return wider, found


def _from_test_table(
    folder: DataFolder,
    sources: Sources,
    index: ImageIndex,
    taken: Collection[str],
    label_column: str,
    group_column: str,
) -> TestImages | None:
    """Find the images to predict in the only table about the test set whose rows are images (`test.csv`).

    Its ids (`group_column`, a column `id`, else the one that names images), their order and column name are
    taken. None without such a table, or if several differ.
    """
    shared = ImageIndex(folder, [image for image in folder.of_part("train", "val", "") if image not in taken])
    found: dict[tuple[str, ...], TestImages] = {}
    for source in sources.of_role("test"):
        table = source.table
        for images in (index, shared):
            if source.is_json or not table.cells or not images.images:
                continue
            try:
                name, match = find_ids(table, images)
                if without_header := images.is_row(name, table.column(name)):
                    table = headerless(table)
                    name, match = find_ids(table, images)
            except UserError:
                continue
            match, _ = settled(match, images.part_of)
            if match.num_unique < len(table.cells):
                continue
            own = [other for other in table.columns if plain_name(other) == "id"]
            name = own[0] if own and len(set(table.column(own[0]))) == len(table.cells) else name
            name = group_column if group_column in table.columns else name
            together: dict[str, list[str]] = {}
            for cell, row in zip(table.column(name), match.images, strict=True):
                together.setdefault(cell.strip(), []).extend(row)
            name = "id" if without_header else name
            columns = (name, label_column if label_column != name else "label")
            says = f"ids and order from {source.name}, no sample submission: columns {','.join(columns)}"
            notes = [
                f"ids are {match.style.says}" if len(together) == len(table.cells) else "several images each"
            ]
            notes += table.notes if without_header else ()
            found[tuple(together)] = TestImages(
                list(together), [*map(tuple, together.values())], source=says, notes=notes, columns=columns
            )
            break
    return next(iter(found.values())) if len(found) == 1 else None


def _check_images(sample: Source, resolved: Resolved, index: ImageIndex) -> None:
    table = sample.table
    ids = table.column(resolved.id_column)
    if resolved.match:
        advice = f"images look like {quoted(index.images[:2])}{_empty_files(ids, resolved, index)}"
        advice += "" if resolved.num_found else f"; {link_advice(resolved.id_column)}"
        problems = resolved.match.problems(ids, table.lines, index, advice)
        rows: dict[str, list[int]] = {}
        for line, images in zip(table.lines, resolved.images, strict=True):
            rows.setdefault(images[0] if len(images) == 1 else "", []).append(line)
        shared = [
            f"{numbered(lines)}: all mean {image}"
            for image, lines in rows.items()
            if image and len(lines) > 1
        ]
        problems += capped(shared, "images are meant by several ids")
    else:
        missing = [row for row, images in enumerate(resolved.images) if not images]
        shown = quoted(ids[row] for row in missing)
        where = numbered(table.lines[row] for row in missing)
        problems = []
        if missing:
            problems = [
                f"{where}: {counted(len(missing), 'id')} without an image ({resolved.says}): {shown}"
                f"{_empty_files(ids, resolved, index)}"
            ]
        problems += _alike_rows(table, ids, resolved)
    raise_all(problems, f"{table.path} and the test images do not fit:")


def _empty_files(ids: Sequence[str], resolved: Resolved, index: ImageIndex) -> str:
    """Return the command that gives ids without an image an empty file, where few ids are without; else ''.

    Such a file cannot be decoded, and its row gets the class frequencies of the training set.
    """
    missing = [row_id.strip() for row_id, images in zip(ids, resolved.images, strict=True) if not images]
    if not 0 < len(missing) <= min(FEW * len(ids), MOST_FILES):
        return ""
    if any("/" in row_id or not row_id.isprintable() for row_id in missing):  # of a foreign file: no path
        return ""
    pairs = zip(ids, resolved.images, strict=True)
    around = filter(None, (_around(row_id.strip(), images[0]) for row_id, images in pairs if images))
    before, behind = next(around, ("", ""))
    if not behind:
        return ""
    paths = [index.root / f"{before}{row_id}{behind}" for row_id in missing]
    folders = {path.parent: None for path in paths if not path.parent.is_dir()}
    commands = [f"mkdir -p {' '.join(quote(str(path)) for path in folders)}"] if folders else []
    commands.append(f"touch {' '.join(quote(str(path)) for path in paths)}")
    return (
        "; if the competition has none for them, empty files give their rows the class frequencies of the "
        f"training set: {' && '.join(commands)}"
    )


def _around(row_id: str, image: str) -> tuple[str, str] | None:
    """Return what stands before and behind an id in the path of its image; None if it is not in there."""
    folder, slash, name = image.rpartition("/")
    if row_id and name.startswith(row_id):
        return folder + slash, name[len(row_id) :]
    found = f"/{folder}/".find(f"/{row_id}/") if row_id else -1
    return (image[:found], image[found + len(row_id) :]) if found >= 0 else None


def _alike_rows(table: Table, ids: Sequence[str], resolved: Resolved) -> list[str]:
    """Return a problem if most images have several rows and nothing tells what each of them asks: all would
    get one prediction.
    """
    rows: dict[tuple[str, ...], list[int]] = {}
    for row, images in enumerate(resolved.images):
        rows.setdefault(images, []).append(row)
    if resolved.row_labels or len(set(resolved.images)) * 2 > len(set(ids)):
        return []
    which = max(rows.values(), key=len)
    return [
        f"{numbered(table.lines[row] for row in which)}: {quoted(ids[row] for row in which)} all mean "
        f"{quoted(resolved.images[which[0]])} ({resolved.says}) and would get the same prediction; if they "
        "ask different things, keep the rows of one of them in the sample submission, and train a run for "
        "each"
    ]
