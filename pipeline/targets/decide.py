"""Decide what the labels mean and which metric scores them. Two possible readings are an error.

The evidence is taken in this order. 1. The flags and competition.yaml; a metric tells most: rmse scores a
number, qwk a grade, roc_auc a probability. 2. The sample submission: a fraction in its one column means a
probability or a number, several labels in a cell mean several guesses. 3. The labels themselves. Nothing is
guessed where a wrong guess would give a file that Kaggle accepts and scores badly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pipeline.errors import UserError
from pipeline.targets.decision_case import Case, Read, contradiction
from pipeline.targets.evidence import Asked, Decision, LabelEvidence, SampleEvidence
from pipeline.targets.graded import of_grades
from pipeline.targets.metrics import find_metric, metric_for
from pipeline.targets.readings import (
    FEW_NUMBERS,
    SEPARATORS,
    are_flags,
    are_fractions_of_one,
    are_numbers,
    comma_advice,
    has_fraction,
    is_true,
    look_like_lists,
    may_have_decimal_commas,
    named_after,
    number,
    several_guesses,
    several_labels,
    split_parts,
    unit_advice,
)
from pipeline.targets.several_columns import of_columns
from pipeline.targets.target import KINDS, Target
from pipeline.wording import natural_key, nearest, quoted

MANY_TEXTS = 20  # if this many rows or more all have different texts, the texts are not classes
DEFAULT_METRIC = {
    "multiclass": "accuracy",
    "binary": "log_loss",
    "multilabel": "micro_f1",
    "ordinal": "qwk",
    "continuous": "rmse",
}
# The best threshold for F-beta is F / (1 + beta^2), where F is the best score itself (Lipton et al. 2014,
# arXiv:1402.1892, for beta 1). For scores around 0.7 that is 0.35 for F1 and 0.14 for F2; F2 uses a little
# more here, for models that are still uncertain.
THRESHOLDS = {"micro_f1": 0.35, "macro_f1": 0.35, "weighted_f1": 0.35, "samples_f1": 0.35, "samples_f2": 0.2}
MEANS = {
    "multiclass": "each a class",
    "binary": "a probability of one of two",
    "multilabel": "several labels per image",
    "ordinal": "grades in order",
    "continuous": "a number",
}


def decide(labels: LabelEvidence, sample: SampleEvidence | None, asked: Asked = Asked()) -> Decision:  # noqa: B008 - frozen
    """Return the only reading of the labels that the evidence leaves.

    Raises:
        UserError: two readings remain (both are shown, with the flag for each), or a flag contradicts the
            data.
    """
    if asked.kind is not None and asked.kind not in KINDS:
        raise UserError(
            f"--target {asked.kind}: unknown kind of target{nearest(asked.kind, KINDS)}; expected one of "
            f"{', '.join(KINDS)}"
        )
    case = Case(labels, sample, asked, find_metric(asked.metric) if asked.metric else None)
    target, texts, why, notes = of_columns(case) if labels.columns else _of_texts(case)
    if asked.kind not in (None, target.kind):
        raise UserError(
            f"--target {asked.kind}: {labels.where} holds {target.describe()} ({why}); use --target "
            f"{target.kind} or leave it out"
        )
    metric = asked.metric and metric_for(asked.metric, target.kind).name
    if case.metric is not None and target.kind not in case.metric.kinds:
        kinds = " or ".join(MEANS[kind] for kind in case.metric.kinds)
        raise UserError(
            f"--metric {case.metric.name} scores {kinds}; {labels.where} holds {target.describe()} ({why}): "
            "name another metric"
        )
    metric = metric or _default_metric(case, target)
    target = replace(target, threshold=THRESHOLDS.get(metric, 0.5)) if target.kind == "multilabel" else target
    if case.metric is not None and metric != case.metric.name:
        notes = [
            *notes,
            f"{metric} counts each label of an image; whether all of them are right is not scored",
        ]
    flags = [
        f"--metric {case.metric.name}" if case.metric else "",
        f"--target {asked.kind}" if asked.kind else "",
    ]
    evidence = "; ".join(part for part in (*flags, why) if part)
    return Decision(
        target,
        metric,
        tuple(texts),
        f"target: {target.describe()}, scored by {metric} ({evidence})",
        tuple(notes),
    )


def _default_metric(case: Case, target: Target) -> str:
    if target.kind == "multiclass" and case.sample is not None:
        guesses, _ = several_guesses(case.sample_cells, target.names)
        if guesses > 1:
            return f"map_at_{guesses}"
    if target.kind in ("multiclass", "multilabel") and not case.one_column:
        return "log_loss"  # it scores every probability and is defined for any rows
    return DEFAULT_METRIC[target.kind]


def _of_texts(case: Case) -> Read:
    """Read labels with one text per row."""
    texts = case.labels.texts
    names = tuple(sorted(set(texts), key=natural_key))
    if case.sample is not None and not case.one_column and not _columns_are_names(case, names):
        several, separator = several_labels(
            texts, (case.asked.separator,) if case.asked.separator else SEPARATORS
        )
        parts = {part for text in texts for part in split_parts(text, separator)}
        if several != "no" and parts & set(case.sample.columns):
            return _label_sets(case, separator, "the sample has a column for each label")
    if case.asked.positive_class:
        return _binary(case, names, "--positive-class")
    if _rows_are_classes(case, names):
        return Target("multiclass", names), texts, "the sample has a row for each class of an image", []
    if len(names) == 2 and are_flags(names) and (are_numbers(names) or are_numbers(case.sample_cells)):
        return _flags(case, names)
    if are_numbers(names):
        return _numbers(case, names)
    return _words(case, names)


def _rows_are_classes(case: Case, names: tuple[str, ...]) -> bool:
    """Return True where the sample has a row for each class of an image, and no flag says otherwise.

    Numbers may also count images of an id: there the rows must be all classes and hold fractions.
    """
    if case.sample is None or case.asked.kind is not None or case.needs("labels", "ranks", "numbers"):
        return False
    asked = set(case.sample.labels)
    if are_numbers(names):
        return asked == set(names) and not are_flags(names) and has_fraction(case.sample_cells)
    return len(names) > 1 and len(asked & set(names)) * 2 > len(names)


def _columns_are_names(case: Case, names: Sequence[str]) -> bool:
    return case.sample is not None and len(set(case.sample.columns) & set(names)) > len(names) / 2


def _flags(case: Case, names: tuple[str, ...]) -> Read:
    """Read labels 0 and 1: a probability or the label itself may be scored."""
    if (
        has_fraction(case.sample_cells)
        and case.may_be("binary")
        and not (case.metric and case.metric.needs == "labels")
    ):
        return _binary(
            case, names, f"the sample's {case.sample.columns[0]!r} holds a fraction" if case.sample else ""
        )
    if case.needs("labels") and not are_numbers(names) and case.asked.kind is None and case.may_be("binary"):
        return _binary(case, names, "the sample holds numbers for them")  # written 0 and 1
    if case.needs("labels") or case.asked.kind in ("multiclass", "ordinal"):
        kind = case.asked.kind or (
            "ordinal" if case.metric is not None and case.metric.name == "qwk" else "multiclass"
        )
        return Target(kind, names), case.labels.texts, "labels 0 and 1", []
    if case.asked.kind == "continuous" or (case.asked.kind is None and case.needs("numbers")):
        return _continuous(case, "labels 0 and 1")
    if case.asked.kind == "binary" or (case.needs("probabilities", "ranks") and case.one_column):
        return _binary(case, names, "labels 0 and 1")
    if case.sample is None or not case.one_column:
        note = (
            "labels 0 and 1 are read as two classes; if a probability is scored: --metric roc_auc or log_loss"
        )
        notes = [] if case.sample else [note]
        return Target("multiclass", names), case.labels.texts, "labels 0 and 1", notes
    shown = (
        f"{case.sample.columns[0]!r} of the sample submission "
        f"({quoted(dict.fromkeys(case.sample_cells)) or 'empty'})"
    )
    raise case.ambiguous(
        f"labels are 0 and 1, and {shown} does not show what is scored",
        "a probability is scored: --metric roc_auc, log_loss, average_precision or pf1 (see the "
        "competition's page)",
        "0 or 1 is scored: --metric accuracy, macro_f1, balanced_accuracy or mcc",
    )


def _numbers(case: Case, names: tuple[str, ...]) -> Read:
    """Read more than two numbers, or numbers with fractions: classes, grades or a quantity."""
    kind, metric = case.asked.kind, case.metric
    fractions, whole = has_fraction(names), f"{len(names):,} different whole numbers"
    if kind == "continuous" or (kind is None and case.needs("numbers")):
        return _continuous(case, "numbers")
    if kind == "ordinal" or (kind is None and metric is not None and metric.name == "qwk"):
        if fractions:
            raise UserError(
                f"{case.labels.where}: {_first_fraction(names)!r} is not a grade: whole numbers are expected "
                "for --target ordinal"
            )
        return of_grades(case, names, whole)
    if kind == "binary":
        return _binary(case, names, whole)
    if kind == "multilabel":
        return _words(case, names)
    if kind is not None or metric is not None or case.labels.source in ("folders", "names"):
        return _one_of(case, names, whole)
    if fractions:
        return _continuous(case, f"numbers such as {_first_fraction(names)}")
    if has_fraction(case.sample_cells):
        if len(names) <= FEW_NUMBERS and case.one_column and are_fractions_of_one(case.sample_cells):
            several = ", several as --positive-class A,B" if len(names) > 2 else ""
            raise case.ambiguous(
                f"the labels are {quoted(names)}, and the sample holds {case.sample_cells[0]}: a probability "
                "or a number",
                f"a probability of one of them is scored: --positive-class {names[1]} (or {names[0]}"
                f"{several}), and --metric roc_auc or log_loss",
                "a number is scored by its distance: --metric rmse (or mae, r2)",
            )
        return _continuous(case, f"{whole}, and the sample holds a fraction")
    if case.sample is not None and not case.one_column:
        return (
            Target("multiclass", names),
            case.labels.texts,
            f"{whole}, and a column for each in the sample",
            [],
        )
    # In JSON numbers stand for categories
    one_guess = case.labels.source == "table" and several_guesses(case.sample_cells, names)[0] == 1
    strange = [cell for cell in case.sample_cells if cell not in names] if one_guess else []
    if len(names) <= FEW_NUMBERS and not strange:
        note = f"{whole} are read as classes; grades in order: --metric qwk; a number: --metric rmse"
        if "-1" in names and len(names) > 3 and min(map(float, names)) == -1:
            note += "; '-1' is a class too: if it means no label, take its rows out of the table"
        return Target("multiclass", names), case.labels.texts, whole, [note]
    raise case.ambiguous(
        f"{whole} may be classes or a quantity"
        + (f", and {strange[0]!r} in the sample is not one of them" if strange else ""),
        "each is a class: --metric accuracy (or macro_f1, log_loss, map_at_5 ...)",
        "a number is scored by its distance: --metric rmse (or mae, r2); grades in order: --metric qwk",
    )


def _words(case: Case, names: tuple[str, ...]) -> Read:
    """Read texts: class names, or several labels in a cell."""
    labels, sample_cells = case.labels, case.sample_cells
    if (
        case.asked.kind in ("ordinal", "continuous")
        or case.needs("numbers")
        or (case.metric is not None and case.metric.name == "qwk")
    ):
        strange = [name for name in names if number(name) is None]
        why = comma_advice(strange) if may_have_decimal_commas(strange) else unit_advice(strange[0])
        raise UserError(f"{labels.where}: {strange[0]!r} is not a number{why or '; ' + contradiction(case)}")
    if case.is_open and look_like_lists(names) and not look_like_lists(sample_cells):
        raise case.ambiguous(
            f"{names[0]!r} looks like a list, and is not read as one: it has no commas, or holds no labels",
            "each text is one class: --target multiclass",
            "several labels per image: write them with spaces between them (cat dog)",
        )
    several, separator = ("no", " ")
    if labels.source in ("table", "json") or case.asked.kind == "multilabel":
        several, separator = several_labels(
            labels.texts, (case.asked.separator,) if case.asked.separator else SEPARATORS
        )
    with_comma = next((text for text in labels.texts if "," in text), "")
    lists = several != "no" and separator == ","
    if (
        case.is_open
        and with_comma
        and may_have_decimal_commas(labels.texts)
        and (lists or not has_fraction(sample_cells))
        and (are_numbers(sample_cells or ("0",)) or may_have_decimal_commas(sample_cells))
    ):
        whole = f" or {with_comma.replace(',', '')!r}" if " or " in comma_advice([with_comma]) else ""
        raise case.ambiguous(
            f"{with_comma!r} may be a number with a comma, or several labels",
            f"a number: write it as {with_comma.replace(',', '.')!r}{whole}, and --metric rmse",
            "several labels per image: --target multilabel",
        )
    if case.is_open and has_fraction(sample_cells) and may_have_decimal_commas(labels.texts):
        raise case.ambiguous(
            f"the sample holds {sample_cells[0]}, and the labels are {quoted(names[:3])}",
            f"numbers: --metric rmse{comma_advice(names)}",
            "classes, of which one has a probability: --positive-class NAME and --metric log_loss",
        )
    if several == "maybe" and _sample_holds_sets(case, separator):
        several = "yes"
    sets_named = case.asked.kind == "multilabel" or (
        case.metric is not None and case.metric.kinds == ("multilabel",)
    )
    if sets_named or (several == "yes" and case.may_be("multilabel") and case.asked.kind is None):
        return _label_sets(case, separator, f"several labels in a cell, {_mark(separator)} between them")
    if (
        several == "maybe"
        and case.asked.kind is None
        and not (case.metric is not None and "multilabel" not in case.metric.kinds)
    ):
        example = next(text for text in labels.texts if len(split_parts(text, separator)) > 1)
        raise case.ambiguous(
            f"{example!r} may be the name of one class, or several labels",
            "each text is one class: --target multiclass",
            "several labels per image: --target multilabel",
        )
    if (
        case.asked.kind is None
        and len(names) == len(labels.texts) >= MANY_TEXTS
        and labels.source != "folders"
    ):
        raise case.ambiguous(
            f"all {len(names):,} rows have different texts, such as {names[0]!r}; only texts seen in "
            f"training can be predicted{unit_advice(names[0])}",
            "texts, masks or other values that are new for each image: not supported",
            "each is a class nevertheless: --target multiclass",
            "several labels per image: --target multilabel",
        )
    if case.asked.kind == "binary" or (
        case.needs("probabilities") and case.one_column and case.sample is not None
    ):
        return _binary(case, names, "one column of probabilities")
    if has_fraction(sample_cells) and case.asked.kind is None and not case.needs("labels", "ranks"):
        return _binary(
            case, names, f"the sample's {case.sample.columns[0]!r} holds a fraction" if case.sample else ""
        )
    if are_numbers(sample_cells) and case.asked.kind is None and labels.source != "names":
        raise _numbers_for_names(case, names)
    if are_numbers(sample_cells) and case.asked.kind is None:
        return _binary(case, names, "the sample holds numbers")
    return _one_of(case, names, labels.where)


def _sample_holds_sets(case: Case, separator: str) -> bool:
    """Return True where a cell of the sample submission combines several parts of training cells in a new
    way.
    """
    texts = set(case.labels.texts)
    parts = {part for text in texts for part in split_parts(text, separator)}
    return any(
        len(found := split_parts(cell, separator)) > 1 and set(found) <= parts and cell not in texts
        for cell in case.sample_cells
    )


def _numbers_for_names(case: Case, names: Sequence[str]) -> UserError:
    """Return the error for class names with numbers in the sample submission: which number is which class is
    unknown.
    """
    column, shown = case.sample.columns[0], quoted(dict.fromkeys(case.sample_cells))  # type: ignore[union-attr]
    return case.ambiguous(
        f"the classes are called {quoted(names[:3])}, and the sample's {column!r} holds the number {shown}",
        "a probability of one class (or 1 for it, 0 for the others) is scored: --positive-class NAME, and "
        "--metric",
        "the class names are scored and the numbers are placeholders: --target multiclass",
        "class numbers are scored: use them as class names "
        "(folders 0, 1, ... or the label column of a table)",
    )


def _one_of(case: Case, names: tuple[str, ...], why: str) -> Read:
    """Read labels as one of several classes."""
    if case.needs("probabilities") and case.one_column and case.sample is not None:
        return _binary(case, names, "one column of probabilities")
    guesses, separator = several_guesses(case.sample_cells, names)
    if guesses > 1:
        why += f"; {guesses} labels in a cell of the sample, {_mark(separator)} between them"
    target = Target("multiclass", names, separator=separator)
    return target, case.labels.texts, why, []


def _continuous(case: Case, why: str) -> Read:
    name = case.labels.column or (
        case.sample.columns[0] if case.sample and len(case.sample.columns) == 1 else "number"
    )
    return Target("continuous", (name,)), case.labels.texts, why, []


def _label_sets(case: Case, separator: str, why: str) -> Read:
    parts = [split_parts(text, separator) for text in case.labels.texts]
    names = tuple(sorted({part for found in parts for part in found}, key=natural_key))
    if len(names) < 2:
        raise UserError(f"{case.labels.where}: only the label {names[0]!r} occurs: two are needed")
    target = Target("multilabel", names, separator=separator, may_be_empty=any(not found for found in parts))
    return target, [separator.join(found) for found in parts], why, []


def _binary(case: Case, names: tuple[str, ...], why: str) -> Read:
    """Read labels as a binary target with a positive class.

    The positive class is the one that was set, else the true one of 0 and 1, else the one that the column is
    named after.
    """
    column = case.sample.columns[0] if case.sample and len(case.sample.columns) == 1 else case.labels.column
    positive = tuple(_as_in(names, name) for name in case.asked.positive_class)
    if unknown := [name for name in positive if name not in names]:
        hint = nearest(unknown[0], names)
        raise UserError(
            f"--positive-class {unknown[0]}: not a label of {case.labels.where}{hint}; the labels: "
            f"{quoted(names)}"
        )
    if set(positive) == set(names):
        raise UserError(
            f"--positive-class {','.join(positive)}: every label would be positive; the labels: "
            f"{quoted(names)}"
        )
    if not positive and len(names) == 2 and are_flags(names):
        positive = tuple(name for name in names if is_true(name))
    if not positive and (found := named_after(column, names)):
        positive = (found,)
    if not positive or len(positive) == len(names):
        flags = " or ".join(f"--positive-class {name}" for name in names[:4])
        many = ", several as --positive-class A,B" if len(names) > 2 else ""
        raise case.ambiguous(
            f"a probability is scored ({why}), but of which class? The classes are {quoted(names)}",
            f"{flags}{many}",
        )
    negative = ", ".join(name for name in names if name not in positive)
    target = Target("binary", (negative, ", ".join(positive)), positive=positive)
    counts = Counter(label in positive for label in case.labels.texts)
    return (
        target,
        case.labels.texts,
        f"{why}; positive: {', '.join(positive)}, {counts[True]:,} of {len(case.labels.texts):,}",
        [],
    )


def _as_in(names: Sequence[str], text: str) -> str:
    """Return the one of `names` that means `text` (1.0, 1 and True are one), else `text`."""
    if text in names or number(text) is None:
        return text
    same = [name for name in names if number(name) == number(text)]
    same += [name for name in names if are_flags([name, text]) and is_true(name) == is_true(text)]
    return next(iter(same), text)


def _first_fraction(names: Sequence[str]) -> str:
    return next(name for name in names if has_fraction([name]))


def _mark(separator: str) -> str:
    return "spaces" if separator == " " else repr(separator)
