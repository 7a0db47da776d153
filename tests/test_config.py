"""Recipes: what is shipped loads, what is wrong is named, all of it at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from pipeline import config
from pipeline.config import (
    DEFAULT_RECIPE,
    RECIPES_DIR,
    differences,
    known_keys,
    load_recipe,
    parse_assignments,
    recipe_names,
    validate_recipe,
)
from pipeline.errors import UserError
from pipeline.recipe import Recipe

# Scripts and papers depend on these names: adding is fine, renaming is not.
STABLE_KEYS = """
backbone image_size epochs batch_size accumulation_steps precision seed
lora.rank lora.alpha lora.dropout lora.targets optimizer.name optimizer.lr optimizer.weight_decay
schedule.name schedule.warmup_ratio schedule.end_lr
augmentation.random_resized_crop augmentation.horizontal_flip augmentation.noise
data.id_column data.label_column data.val_fraction data.skip_bad_images
"""


def write(folder: Path, text: str) -> str:
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    return str(folder / "mine.yaml")


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_and_says_where_it_comes_from(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    text = (RECIPES_DIR / f"{name}.yaml").read_text(encoding="utf-8")
    head = text[: text.index("\nbackbone") if "\nbackbone" in text else None]
    assert head.startswith("#") and "source" in head.lower()


def test_the_default_recipe_is_the_report() -> None:
    recipe = load_recipe(DEFAULT_RECIPE)
    assert (recipe.backbone, recipe.image_size, recipe.epochs) == (
        "microsoft/beit-large-patch16-384",
        384,
        25,
    )
    assert (recipe.batch_size, recipe.accumulation_steps, recipe.effective_batch_size) == (8, 8, 64)
    assert (
        recipe.optimizer.name,
        recipe.optimizer.lr,
        recipe.schedule.name,
        recipe.schedule.warmup_ratio,
    ) == ("adamw", 5e-5, "linear", 0.05)
    assert (recipe.lora.rank, recipe.lora.targets, recipe.data.val_fraction) == (16, ("query", "key"), 0.05)


def test_stable_keys_exist() -> None:
    assert set(STABLE_KEYS.split()) <= set(known_keys())


def test_numbers_as_yaml_writes_them(tmp_path: Path) -> None:
    assert yaml.safe_load("5e-5") == "5e-5"  # YAML 1.1 reads it as text: people write it all the same
    recipe = load_recipe(write(tmp_path, "backbone: b\noptimizer: {lr: 5e-5}\n"))
    assert recipe.optimizer.lr == 5e-5
    assert (
        load_recipe(write(tmp_path, "backbone: b\n"), parse_assignments(["optimizer.lr=2e-4"])).optimizer.lr
        == 2e-4
    )


def test_overrides_reach_into_sections_and_leave_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path, "backbone: b\nlora: {rank: 4, alpha: 8}\n")
    recipe = load_recipe(path, {"lora.rank": 0, "epochs": 3, "schedule.name": "cosine"})
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.epochs, recipe.schedule.name) == (0, 8, 3, "cosine")
    assert recipe.name == "mine"


def test_assignments_are_read_as_yaml() -> None:
    parsed = parse_assignments(
        ["lora.targets=[query, value]", "data.id_column=a=b", "image_size=null", "augmentation.noise=0.1"]
    )
    assert parsed == {
        "lora.targets": ["query", "value"],
        "data.id_column": "a=b",
        "image_size": None,
        "augmentation.noise": 0.1,
    }
    with pytest.raises(UserError) as caught:
        parse_assignments(["lora.rank", "=3", "epochs=[1"])
    assert all(f"--set {text}:" in str(caught.value) for text in ("lora.rank", "=3", "epochs=[1"))


def test_every_key_is_explained_with_its_value(capsys: pytest.CaptureFixture) -> None:
    assert config.main(["beit-base-cifar10"]) == 0
    blocks = [block.split("\n", 1) for block in re.split(r"\n(?! )", capsys.readouterr().out.rstrip())]
    shown = {first.split()[0]: (first.split(None, 1)[1], " ".join(more.split())) for first, more in blocks}
    assert shown.keys() == known_keys().keys() and all(field.description for field in known_keys().values())
    for key, (text, words) in shown.items():
        assert words.startswith(f"{known_keys()[key].description}; "), key
        value = yaml.safe_load(text)  # what --set KEY=VALUE would take
        assert load_recipe("beit-base-cifar10", {key: value}) == load_recipe("beit-base-cifar10"), key
    assert shown["schedule.name"][0] == "stepped_cosine" and shown["schedule.name"][1].endswith(
        "linear | cosine | stepped_cosine | constant"
    )
    assert shown["data.workers"][1].endswith("; int | auto") and shown["image_size"][1].endswith(
        "; int | null"
    )


def test_unknown_keys_are_named_with_the_nearest_one(tmp_path: Path) -> None:
    path = write(tmp_path, "backbone: b\nepoch: 3\nlora: {rnak: 4}\nzzzzzz: 1\n")
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    text = str(caught.value)
    assert path in text
    assert "epoch: unknown key; did you mean epochs?" in text
    assert "lora.rnak: unknown key; did you mean lora.rank?" in text
    assert "zzzzzz: unknown key\n" in text + "\n"
    with pytest.raises(UserError, match=r"lr: .*optimizer\.lr"):  # right name, no section
        load_recipe(DEFAULT_RECIPE, {"lr": 1})
    with pytest.raises(UserError, match=r"lora: .*lora\.\w+"):
        load_recipe(DEFAULT_RECIPE, {"lora": 8})


def test_all_problems_come_in_one_message(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "epochs: 0\nprecision: fp8\nlora: {dropout: 1.5, targets: [query, kee]}\noptimizer: {lr: fast}\n"
        "schedule: 3\ndata: {val_fraction: .nan, workers: many}\nseed: -1\n",
    )
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    text = str(caught.value)
    for expected in (
        "backbone: field required",
        "epochs: input should be greater than or equal to 1, found 0",
        "precision: input should be 'auto', 'fp32', 'bf16' or 'fp16', found 'fp8'",
        "lora.dropout: input should be less than 1, found 1.5",
        "lora.targets: input should be 'query'",
        "found 'kee'",
        "optimizer.lr: input should be a valid number",
        "schedule: expected keys with values",
        "data.val_fraction: input should be a finite number",
        "data.workers: input should be",
        "seed: input should be greater than or equal to 0, found -1",
    ):
        assert expected in text, expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "augmentation: {crop_scale: [0.5, 0.1]}",
            "augmentation.crop_scale: expected 0 < low <= high, found 0.5, 0.1",
        ),
        (
            "augmentation: {crop_scale: [0.5, 1.5]}",
            "crop_scale: a crop cannot be larger than the image, found 1.5",
        ),
        ("augmentation: {crop_ratio: [0, 1]}", "augmentation.crop_ratio: expected 0 < low <= high"),
        ("architecture: {model_type: beit}", "architecture: needs random_weights: true"),
        ("schedule: {end_lr: 1}", "schedule.end_lr: 1.0 is above optimizer.lr 5e-05"),
        ("epochs: true", "epochs: expected a number, found True"),
        ("data: {workers: true}", "data.workers: expected a number, found True"),
        ("data: {workers: -1}", "data.workers: expected auto or a number from 0, found -1"),
        ("lora: {targets: []}", "lora.targets: "),
        ("lora: null", "lora: "),
        ("1: 2", "1"),
        ("- a\n- b", "expected keys and values, found list"),
        ("", "expected keys and values, found NoneType"),
        ("a: [", "is not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_values_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    lines = text if text.startswith("- ") or not text else f"backbone: b\n{text}"
    with pytest.raises(UserError) as caught:
        load_recipe(write(tmp_path, lines))
    assert message in str(caught.value)


def test_no_such_recipe_lists_those_there_are() -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("beit-large-384-lorra")
    assert "did you mean beit-large-384-lora?" in str(
        caught.value
    ) and f"recipes: {recipe_names()[0]}" in str(caught.value)
    with pytest.raises(
        UserError,
        match=r"recipes/vit-tiny-imagewof\.yaml: no such file in .*; did you mean vit-tiny-imagewoof\?",
    ):
        load_recipe("recipes/vit-tiny-imagewof.yaml")


def test_a_recipe_never_changes_and_survives_json() -> None:
    recipe = load_recipe(DEFAULT_RECIPE)
    with pytest.raises(ValidationError):
        recipe.epochs = 1
    with pytest.raises(ValidationError):
        recipe.lora.rank = 1
    stored = recipe.model_dump(mode="json")
    assert validate_recipe(stored, {}, "run.json") == recipe


def test_differences_name_key_old_and_new() -> None:
    old = Recipe(backbone="b", random_weights=True, architecture={"model_type": "beit", "hidden_size": 32})
    new = validate_recipe(
        old.model_dump(mode="json"), {"lora.rank": 4, "epochs": 3, "lora.targets": ["value"]}, "here"
    )
    assert differences(old, old) == {}
    assert differences(old, new) == {
        "epochs": "25 -> 3",
        "lora.rank": "16 -> 4",
        "lora.targets": "['query', 'key'] -> ['value']",
    }
    wider = validate_recipe(
        old.model_dump(mode="json"), {"architecture": {"model_type": "beit", "hidden_size": 64}}, "here"
    )
    assert list(differences(old, wider)) == ["architecture"]


@pytest.mark.parametrize(
    ("assignment", "shown"),
    [
        ("lora.rank=x", "lora.rank"),
        ("lora.targets=querry", "[querry]"),
        ("lora.targets=[querry]", "'query'"),
        ("schedule.end_lr=1", "schedule.end_lr"),
    ],
)
def test_a_wrong_flag_does_not_blame_the_recipe_file(assignment: str, shown: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("beit-large-384-lora", parse_assignments([assignment]))
    heading, *problems = str(caught.value).splitlines()
    assert "command line" in heading and len(problems) == 1 and shown in problems[0]


def test_a_recipe_that_names_billions_of_values_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"] + [
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 30)
    ]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"bomb\.yaml.*aliases"):
        load_recipe(str(tmp_path / "bomb.yaml"), {})
