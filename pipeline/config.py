"""Read a recipe: YAML file + command line flags -> one frozen, validated object.

All problems are reported at once, each unknown key with the nearest valid one.

python -m pipeline.config  # every key: value in the default recipe, meaning, allowed values
python -m pipeline.config vit-tiny-imagewoof    # the same for another recipe or a .yaml file
"""

from __future__ import annotations

import argparse
import difflib
import sys
import textwrap
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.errors import UserError, raise_all, run_command
from pipeline.files import read_yaml
from pipeline.recipe import Recipe
from pipeline.recipe_sections import Role, Section
from pipeline.wording import nearest

RECIPES_DIR = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "beit-large-384-lora"


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the project, sorted."""
    return sorted(path.stem for path in RECIPES_DIR.glob("*.yaml"))


def load_recipe(name_or_file: str, overrides: dict[str, Any] | None = None) -> Recipe:
    """Return the recipe `name_or_file` (a name, or the path of a YAML file) with dotted-key `overrides`
    applied.

    Raises:
        UserError: no such recipe, not YAML, or keys or values that are not allowed; all are listed.
    """
    is_file_name = name_or_file.endswith((".yaml", ".yml"))
    path = Path(name_or_file) if is_file_name else RECIPES_DIR / f"{name_or_file}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(path.stem, recipe_names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        what = f"no such file in {Path.cwd()}" if is_file_name else "no such recipe"
        raise UserError(
            f"--recipe {name_or_file}: {what}{hint}\nrecipes: {', '.join(recipe_names())} (or the path of a "
            ".yaml file)"
        )
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, found {type(values).__name__}")
    values.setdefault("name", path.stem)
    return validate_recipe(values, overrides or {}, where=str(path))


def validate_recipe(values: dict[str, Any], overrides: dict[str, Any], where: str) -> Recipe:
    """Return `values` (nested) with dotted-key `overrides` applied, as a `Recipe`.

    `where` names the source in messages.

    Raises:
        UserError: lists every unknown key (with the nearest valid one) and every value that is not allowed.
    """
    problems = []
    for key, value in overrides.items():
        problems += _assign(values, key, value)
    raise_all(problems, "the command line has unknown recipe keys:")
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        items = error.errors()
        known_bad = {item["loc"] for item in items}
        # pydantic also reports a list with a wrong item as too short. Keep only the wrong item.
        items = [
            item
            for item in items
            if item["type"] != "too_short"
            or not any(loc[: len(item["loc"])] == item["loc"] != loc for loc in known_bad)
        ]
        own = [problem_of(item) for item in items if not _from_flags(item, overrides)]
        flags = [problem_of(item) for item in items if _from_flags(item, overrides)]
        heading = (
            f"{where} is not a valid recipe:"
            if own
            else f"the command line has values that are not allowed ({where} itself is valid):"
        )
        raise_all([*own, *flags], heading)
        raise  # raise_all raises: pydantic reports at least one problem


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Return `--set` arguments such as `lora.rank=8` as a dictionary from dotted key to value (read as
    YAML).

    Raises:
        UserError: an argument is not KEY=VALUE, or its value is not YAML.
    """
    parsed, problems = {}, []
    for text in assignments:
        key, sign, value = text.partition("=")
        try:
            if not sign or not key:
                raise ValueError("expected KEY=VALUE, for example --set lora.rank=8")
            parsed[key.strip()] = yaml.safe_load(value)
        except RecursionError:
            problems.append(f"--set {text:.60}...: too many levels of nested lists or mappings")
        except (ValueError, yaml.YAMLError) as error:
            problems.append(f"--set {text}: {error}")
    raise_all(problems, "could not read the command line:")
    return parsed


def differences(old: Recipe, new: Recipe) -> dict[str, str]:
    """Return `old -> new` for every dotted key whose value differs, without the name, which changes no
    result.
    """
    before, after = (_flat(recipe.model_dump(mode="json", exclude={"name"})) for recipe in (old, new))
    return {
        key: f"{before.get(key)} -> {after.get(key)}" for key in after if before.get(key) != after.get(key)
    }


def _assign(values: dict[str, Any], dotted: str, value: Any) -> list[str]:
    if dotted not in known_keys():
        return [f"{dotted}: unknown recipe key{_hint(dotted)}"]
    *sections, last = dotted.split(".")
    for section in sections:
        nested = values.get(section)
        values[section] = dict(nested) if isinstance(nested, dict) else {}
        values = values[section]
    values[last] = value
    return []


def known_keys() -> dict[str, FieldInfo]:
    """Return every recipe key in dotted form, with its pydantic field."""
    keys = {}
    for name, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys |= {f"{name}.{inner}": own for inner, own in field.annotation.model_fields.items()}
        else:
            keys[name] = field
    return keys


def describe_keys(recipe: Recipe, width: int = 100) -> str:
    """Return a text with every key, its value in `recipe`, its meaning and the allowed values.

    It is at most `width` columns wide.
    """
    values = _flat(recipe.model_dump(mode="json"))
    fields = known_keys()
    column = max(len(key) for key in fields) + 2
    lines = []
    for key, field in fields.items():
        words = (
            f"{field.description}; {_allowed(field.annotation)}"
            if field.description
            else _allowed(field.annotation)
        )
        room = {"width": width, "initial_indent": " " * column, "subsequent_indent": " " * column}
        value = textwrap.wrap(_as_yaml(values[key]), **room, break_on_hyphens=False) or [""]
        lines += [key.ljust(column) + value[0][column:], *value[1:]]
        lines += textwrap.wrap(
            words,
            **{name: text if name == "width" else text + "  " for name, text in room.items()},
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _allowed(annotation: Any) -> str:
    """Return the allowed values of a field's type, such as `int | auto | null`."""
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        inner = [_allowed(part) for part in get_args(annotation) if part is not ...]
        return f"[{inner[0]}, ...]" if ... in get_args(annotation) else f"[{', '.join(inner)}]"
    if get_origin(annotation) is dict:
        return "keys of a transformers config"
    if parts := get_args(annotation):
        return " | ".join(map(_allowed, parts))
    return {"NoneType": "null", "str": "text", "float": "number", "bool": "true | false"}.get(
        annotation.__name__, annotation.__name__
    )


def _hint(dotted: str) -> str:
    """Return `; did you mean KEY?`: the same name in another section, else the nearest spelling.

    "" if none is near.
    """
    keys, name = list(known_keys()), dotted.rsplit(".", 1)[-1]
    near = [key for key in keys if key.rsplit(".", 1)[-1] == name] or difflib.get_close_matches(
        dotted, keys, n=1, cutoff=0.5
    )
    return f"; did you mean {near[0]}?" if near else ""


def _dotted(item: dict[str, Any]) -> str:
    return ".".join(
        str(part) for part in item["loc"] if isinstance(part, str) and part not in ("int", "literal['auto']")
    )


def _from_flags(item: dict[str, Any], overrides: dict[str, Any]) -> bool:
    """Return True if the problem is about a value from the command line."""
    about = _dotted(item) or str(item.get("ctx", {}).get("error", ""))
    return any(
        about == key or about.startswith((f"{key}.", f"{key}:")) or key.startswith(f"{about}.")
        for key in overrides
    )


def problem_of(item: dict[str, Any]) -> str:
    """Return one line for one pydantic error: the dotted key, the expected and the found value."""
    dotted = _dotted(item)
    if item["type"] == "extra_forbidden":
        return f"{dotted}: unknown key{_hint(dotted)}"
    if item["type"] == "value_error":
        # Of a key, or of a section, whose rules name the key themselves
        sign = ": " if dotted in known_keys() else "." if dotted else ""
        return f"{dotted}{sign}{item['ctx']['error']}"
    if item["type"] in ("model_type", "dict_type", "model_attributes_type"):
        return f"{dotted or 'the file'}: expected keys with values, found {item['input']!r:.80}"
    if item["type"] == "tuple_type":
        return f"{dotted}: expected a list such as [{item['input']}], found {item['input']!r}"
    found = f"{item['msg'][0].lower()}{item['msg'][1:]}, found {item['input']!r}"
    if item["type"] == "literal_error" and dotted == "lora.targets":
        found += nearest(str(item["input"]), get_args(Role))
    return f"{dotted}: {found}"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict) and prefix == "" and key not in ("architecture", "text_architecture"):
            flat |= _flat(value, f"{key}.")
        else:
            flat[prefix + key] = value
    return flat


def main(argv: list[str] | None = None) -> int:
    """Print the keys of a recipe."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.config",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "recipe", metavar="NAME|FILE", nargs="?", default=DEFAULT_RECIPE, help=f"default: {DEFAULT_RECIPE}"
    )
    print(describe_keys(load_recipe(parser.parse_args(argv).recipe)))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
