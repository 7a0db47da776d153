"""Check the structure of JSON values: types, keys, items of lists.

Every difference is reported with its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, raise_all
from pipeline.files import read_json

MAX_SHOWN = 80  # characters of a value in a message


@dataclass(frozen=True)
class Kind:
    """A value that is not an object or list: its name in messages, and the check."""

    words: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class Each:
    """An object whose values, under any name, all have the shape `of`."""

    of: Shape


# An object: its keys with their shapes. A key that ends in "?" may be missing or null; other keys may hold
# anything. A list: a list with one item, the shape of every item.
Shape = Kind | Each | dict[str, Any] | list[Any]


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond the floats
        return False


def _is_moment(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(datetime.fromisoformat(value))
    except ValueError:
        return False


TEXT = Kind("a text", lambda value: isinstance(value, str))
WHOLE = Kind("a whole number", lambda value: type(value) is int)
COUNT = Kind("a whole number from 0", lambda value: type(value) is int and value >= 0)
NUMBER = Kind("a number", _is_number)
NUMBER_OR_NONE = Kind("a number", lambda value: value is None or _is_number(value))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
MOMENT = Kind("a date and time", _is_moment)
ANYTHING = Kind("anything", lambda value: True)


def differences_from(shape: Shape, value: Any, place: str = "") -> list[str]:
    """Return a line for each place where `value` differs from `shape`: `best.epoch: expected a whole
    number, found '1'`.
    """
    if isinstance(shape, Kind):
        return [] if shape.fits(value) else [_expected(place, shape.words, value)]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [_expected(place, "a list", value)]
        return [
            line
            for number, item in enumerate(value)
            for line in differences_from(shape[0], item, f"{place}[{number}]")
        ]
    if not isinstance(value, dict):
        return [_expected(place, "an object", value)]
    if isinstance(shape, Each):
        return [
            line
            for name, item in value.items()
            for line in differences_from(shape.of, item, _inside(place, name))
        ]
    lines = []
    for key, inner in shape.items():
        name = key.removesuffix("?")
        if value.get(name) is not None:
            lines += differences_from(inner, value[name], _inside(place, name))
        elif name == key:
            lines.append(f"{_inside(place, name)}: missing")
    return lines


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        UserError: it is missing, or holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_shaped(path: Path, shape: Each | dict[str, Any], how: str) -> dict[str, Any]:
    """Return the JSON object in a file, without keys that hold null.

    `how`: how to fix an object of another shape.

    Raises:
        UserError: it is missing, not a JSON object, or has other values; each difference is listed.
    """
    value = read_json(path)
    raise_all(differences_from(shape, value), f"{path} was changed by hand or is damaged; {how}:")
    return {key: item for key, item in value.items() if item is not None}


def _inside(place: str, name: str) -> str:
    return f"{place}.{name}" if place else str(name)


def _expected(place: str, words: str, value: Any) -> str:
    return f"{place or 'the value'}: expected {words}, found {value!r:.{MAX_SHOWN}}"
