"""Read and write the JSON files of VQA v2: questions, annotations, results. All problems are reported.

Format: visualqa.org/download.html
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, raise_all
from pipeline.files import write_text
from pipeline.wording import capped, nearest


@dataclass(frozen=True, slots=True)
class Question:
    """One question. `place`: its entry in a JSON file or its row in a table, counted from 1."""

    id: str
    image: str  # as the file writes it: a COCO number, or a file name
    text: str
    place: int


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to one question: the agreed answer, and those of all annotators where the file has them."""

    answer: str
    answers: tuple[str, ...] = ()
    answer_type: str | None = None
    image: str | None = None


@dataclass
class Problems:
    """The problems of one file's entries by kind, so that many entries share a line: `entries 3, 9`."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, problem: str) -> None:
        """Add one problem.

        `kind`: a plural phrase for more problems of its kind: `entries have no question_id`.
        """
        self.found.setdefault(kind, []).append(problem)

    def lines(self) -> list[str]:
        """Return the first problems of each kind, and the number of further ones."""
        return [line for kind, problems in self.found.items() for line in capped(problems, kind)]


def load_questions(path: Path) -> dict[str, Question]:
    """Load a questions file: question id -> question, in the order of the file.

    Raises:
        UserError: the file is not JSON of that form; entries lack id, image or question, or repeat an id. All
            are listed.
    """
    problems, questions = Problems(), {}
    for place, entry in _entries(path, "questions", problems):
        question_id = _id_of(entry, "question_id", place, problems)
        image = _id_of(entry, "image_id", place, problems)
        text = _text_of(entry, "question", place, problems)
        if question_id is None or image is None or text is None:
            continue
        if question_id in questions:
            first = questions[question_id].place
            problems.add(
                "ids occur several times",
                f"entries {first} and {place}: the question_id {question_id} occurs twice",
            )
        else:
            questions[question_id] = Question(question_id, image, text, place)
    raise_all(problems.lines(), f"{path}:")
    return questions


def load_annotations(path: Path) -> dict[str, Answered]:
    """Load an annotations file: question id -> its answers.

    Without `multiple_choice_answer`, the annotators' most frequent answer is taken; that is the meaning of
    this key.

    Raises:
        UserError: the file is not JSON of that form; entries lack id or answer, or repeat an id. All are
            listed.
    """
    problems: Problems = Problems()
    annotations: dict[str, Answered] = {}
    for place, entry in _entries(path, "annotations", problems):
        question_id = _id_of(entry, "question_id", place, problems)
        answers = _answers_of(entry, place, problems)
        if "multiple_choice_answer" not in entry and answers:
            answer: str | None = Counter(answers).most_common(1)[0][0]
        else:
            answer = _text_of(entry, "multiple_choice_answer", place, problems)
        if question_id is None or answer is None:
            continue
        if not answer.strip():
            problems.add(
                "entries have an empty answer",
                f"entry {place} (question_id {question_id}): the answer is empty",
            )
        elif question_id in annotations:
            problems.add(
                "ids occur several times", f"entry {place}: the question_id {question_id} occurred before"
            )
        else:
            kind, image = entry.get("answer_type"), entry.get("image_id")
            annotations[question_id] = Answered(
                answer,
                answers,
                kind if isinstance(kind, str) else None,
                None if image is None else str(image).strip(),
            )
    raise_all(problems.lines(), f"{path}:")
    return annotations


def load_results(path: Path) -> dict[str, tuple[int, str]]:
    """Load an official results file: question id -> (entry number, answer), in the order of the file.

    Raises:
        UserError: the file is not a list of `{"question_id": ..., "answer": ...}`, or repeats an id.
    """
    problems, results = Problems(), {}
    for place, entry in _entries(path, None, problems):
        question_id = _id_of(entry, "question_id", place, problems)
        answer = _text_of(entry, "answer", place, problems)
        if question_id is None or answer is None:
            continue
        if question_id in results:
            problems.add(
                "ids occur several times",
                f"entries {results[question_id][0]} and {place}: the question_id {question_id} occurs twice",
            )
        results[question_id] = place, answer
    raise_all(problems.lines(), f"{path}:")
    return results


def write_results(path: Path, ids: Sequence[str], answers: Sequence[str]) -> None:
    """Write the official results file atomically: `[{"question_id": 1, "answer": "yes"}, ...]`.

    Ids are written as numbers if all of them are numbers.
    """
    numbers = all(_is_whole_number(question_id) for question_id in ids)
    entries = [
        {"question_id": int(question_id) if numbers else question_id, "answer": answer}
        for question_id, answer in zip(ids, answers, strict=True)
    ]
    write_text(path, json.dumps(entries, ensure_ascii=False) + "\n")


def load_json(path: Path) -> Any:
    """Load a JSON file.

    Raises:
        UserError: it cannot be read; the message gives the line.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        return json.loads(text)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start:,}): download or save it again") from None
    except json.JSONDecodeError as error:
        size = len(text)
        what = (
            "it is empty"
            if not text.strip()
            else f"line {error.lineno}, character {error.colno}: {error.msg}"
        )
        cut = ""
        if error.pos >= size - 1:
            cut = "; it ends too early, as an interrupted download does: download it again"
        raise UserError(f"{path} is not valid JSON: {what}{cut}") from None
    except (RecursionError, ValueError) as error:  # nested very deeply, or a number with thousands of digits
        raise UserError(f"{path} is not valid JSON: {str(error) or 'nested too deeply'}") from None


def _entries(path: Path, key: str | None, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the entries of the list under `key` (None: the file is the list), numbered from 1; others go to
    `problems`.
    """
    loaded = load_json(path)
    if key is not None:
        if not isinstance(loaded, dict) or not isinstance(loaded.get(key), list):
            what = (
                f"keys {', '.join(map(repr, list(loaded)[:6]))}"
                if isinstance(loaded, dict)
                else f"a {type(loaded).__name__}"
            )
            near = nearest(key, loaded) if isinstance(loaded, dict) else ""
            raise UserError(f'{path}: {what} found; expected {{"{key}": [...]}} as in VQA v2{near}')
        loaded = loaded[key]
    if not isinstance(loaded, list) or not loaded:
        what = "an empty list" if isinstance(loaded, list) else f"a {type(loaded).__name__}"
        raise UserError(f"{path}: {what} found; expected a list of {key or 'answers'}")
    for place, entry in enumerate(loaded, start=1):
        if isinstance(entry, dict):
            yield place, entry
        else:
            problems.add(
                "entries are no objects",
                f"entry {place} is a {type(entry).__name__}, not an object with keys",
            )


def _id_of(entry: dict[str, Any], key: str, place: int, problems: Problems) -> str | None:
    value = entry.get(key)
    if type(value) is int:
        return str(value)
    if isinstance(value, str) and value.strip() and _is_text(value):
        return value.strip()
    problems.add(
        f"entries have no {key}", f"entry {place}: {_says(entry, key)}; a number or a text is needed"
    )
    return None


def _text_of(entry: dict[str, Any], key: str, place: int, problems: Problems) -> str | None:
    value = entry.get(key)
    if isinstance(value, str) and _is_text(value):
        return value
    if _is_number(value):  # an answer such as 2
        return str(value)
    problems.add(
        f"entries have no {key}", f"entry {place}{_named(entry)}: {_says(entry, key)}; a text is needed"
    )
    return None


def _answers_of(entry: dict[str, Any], place: int, problems: Problems) -> tuple[str, ...]:
    """Return the annotators' answers; the file has `[{"answer": "yes"}, ...]` or plain texts."""
    given = entry.get("answers", [])
    answers = (
        [item.get("answer") if isinstance(item, dict) else item for item in given]
        if isinstance(given, list)
        else [None]
    )
    answers = [str(answer) if _is_number(answer) else answer for answer in answers]
    if all(isinstance(answer, str) and _is_text(answer) for answer in answers):
        return tuple(answers)
    problems.add(
        "entries have unreadable answers",
        f'entry {place}{_named(entry)}: answers is not a list of {{"answer": text}}',
    )
    return ()


def _named(entry: dict[str, Any]) -> str:
    return f" (question_id {entry['question_id']})" if isinstance(entry.get("question_id"), int | str) else ""


def _says(entry: dict[str, Any], key: str) -> str:
    return f"{key} is {entry[key]!r:.60}" if key in entry else f"no {key}{nearest(key, entry)}"


def _is_number(value: Any) -> bool:
    """Return False for NaN, which is how Python writes a missing value, and for infinity."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _is_text(value: str) -> bool:
    """Return False for text that no file can hold: half a surrogate pair, or NUL."""
    return (value.isascii() and "\0" not in value) or _encodes(value)


def _encodes(value: str) -> bool:
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False


def _is_whole_number(text: str) -> bool:
    return re.fullmatch("0|[1-9][0-9]{0,17}", text) is not None
