"""The house rules that a machine can hold: who may import whom, what stays light, and that the README's
commands exist.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A file imports only from its own wing's earlier rooms and from wings above.
WINGS = {
    "": (
        "ranks engines errors importing stopping files shapes run_names unfinished lock open_files wording "
        "tables recipe_sections recipe config naming answers"
    ),
    "targets": (
        "target evidence readings measures classes metric_table metrics baseline decision_case "
        "graded several_columns decide"
    ),
    "what a run holds": "run_record run predictions",
    "forms": "form recognise cells check",
    "competition": (
        "facts rows parts folders id_styles ids folder_columns spelling id_columns json_tables line_tables "
        "sources label_columns label_table long_tables class_folders subjects label_candidates labels "
        "likely_groups groups corrections pseudo_labels fold_split sample class_tables test_rows "
        "sample_classes notes other_tasks vqa_files vqa_images vqa_tables vqa_layout layout splits "
        "questions"
    ),
    "submission": "write belonging origin solution grading answer_grading score",
    "kaggle": "token reply cli remembered ledger begun preflight submit",
    "data": (
        "metadata opening intensity images transforms crops cache loader policies sampling mixing "
        "dataset tokenizer question_batches"
    ),
    "fetch": (
        "addresses budget archives sessions transfer download whole release_file release_contents "
        "releases public_sets set_layout packed pieces staging arrival grey_range pixels staged_rows stacks "
        "channels pixel_tables encoded_tables json_bands arrays tf_examples tfrecords bson_files "
        "hdf5_contents hdf5_files dicom containers originals data_folder set_install install"
    ),
    "models": (
        "places config_bounds model_size timm_checkpoints checkpoint_config backbones roles dropout "
        "adapter_settings adapter_starts adapter_files lora onednn autograd attention_functions half_weights "
        "cpu_prediction compiled_blocks attention_maps openvino_model int8_model encoders fusion"
    ),
    "training": (
        "image_sizes optim memory checkpoint resume processes compute hard_rows losses predict "
        "sharding features probe keeping position gradients means loop_state failures validating engine "
        "compilation attending estimate deadline advice record"
    ),
    "tasks": (
        "build suited parting frozen_features image_classifier classification_task classification "
        "question_predictor question_task vqa registry quantized apply step_cost"
    ),
    "report": (
        "run_files words figures rendering curves confusion charts thumbnails calibration "
        "probability_section label_section number_section validation browsing question_section "
        "ledger_figure run_facts folds_section decisions_section only_right comparison page live_page "
        "attention"
    ),
    "folds": (
        "bases plan answer_lists parallel decisions prior assembly training averaging team kept views "
        "quantizing finishing weights members blend"
    ),
    "cleaning": "confident out_of_fold neighbours suspects_page suspects",
    "look": (
        "section image_facts fact_store measuring selection understood drawing label_counts "
        "contact_sheet sizes duplicates copies group_file odd_images same_source model_input cost "
        "as_text look_page show"
    ),
    "kernel": (
        "pace carried cards answer bundle slugs script placeholder sealed rehearsal stages remote "
        "flags push make"
    ),
    "commands": "session building probing announcing step_choice fitting planning",
    "experiments": "grids trials side_by_side ablation_table ablation",
    "benchmarks": "baselines throughput step_memory benchmark flipped_labels",
    "last": "demo_data demo",
}
ROOMS = [
    f"{wing}.{room}" if wing not in ("", "what a run holds", "last") else room
    for wing, rooms in WINGS.items()
    for room in rooms.split()
]
TORCH_FREE = [
    room
    for room in ROOMS
    if room.startswith(("targets.", "forms.", "competition.", "submission.", "kaggle.", "fetch."))
    or "." not in room
]


def path_of(room: str) -> Path:
    return ROOT / "pipeline" / (room.replace(".", "/") + ".py")


def imports(path: Path) -> list[tuple[str, int]]:
    """(pipeline room, line) of everything a file imports, also inside functions; imports for type checkers
    alone do not count.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pipeline"):
            inside = node.module.removeprefix("pipeline").removeprefix(".")
            names = (
                [inside]
                if inside in ROOMS
                else [f"{inside}.{alias.name}".removeprefix(".") for alias in node.names]
            )
            found += [(name, node.lineno) for name in names]
        elif isinstance(node, ast.Import):
            found += [
                (alias.name.removeprefix("pipeline."), node.lineno)
                for alias in node.names
                if alias.name.startswith("pipeline")
            ]
    return found


def test_the_list_of_rooms_is_the_house() -> None:
    on_disk = {
        ".".join(path.relative_to(ROOT / "pipeline").with_suffix("").parts)
        for path in (ROOT / "pipeline").rglob("*.py")
    }
    assert {name for name in on_disk if not name.endswith("__init__")} == set(ROOMS)


def test_no_two_rooms_share_a_name() -> None:
    names = [room.rsplit(".", 1)[-1] for room in ROOMS]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room: str) -> None:
    later = [(name, line) for name, line in imports(path_of(room)) if ROOMS.index(name) >= ROOMS.index(room)]
    assert not later, f"pipeline/{room}.py imports from later rooms: {later}"


def test_nothing_imports_the_scripts() -> None:
    for room in ROOMS:
        assert not re.search(
            r"^\s*(import|from) (train|inference)\b", path_of(room).read_text(encoding="utf-8"), re.MULTILINE
        ), room


def test_only_one_file_imports_peft() -> None:
    assert [
        room
        for room in ROOMS
        if re.search(r"^\s*(import|from) peft", path_of(room).read_text("utf-8"), re.MULTILINE)
    ] == ["models.lora"]


def test_the_floors_without_torch_load_without_torch() -> None:
    modules = [f"pipeline.{room}" for room in TORCH_FREE] + ["train", "inference"]
    code = (
        f"import sys\nfor name in {modules!r}: __import__(name)\nprint(sorted({{'torch', 'transformers', "
        "'peft', 'kaggle'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def public(tree: ast.Module | ast.ClassDef) -> list[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """(dotted name, definition) of every class, function and method that a reader meets from outside.

    Members of a `Protocol` and what torch calls of its own subclasses (`forward`, `backward`) are left to the
    docstring of their class.
    """
    found = []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            found.append((node.name, node))
            if isinstance(node, ast.ClassDef) and not {"Protocol", "Function", "nn.Module"} & set(
                map(ast.unparse, node.bases)
            ):
                found += [(f"{node.name}.{name}", member) for name, member in public(node)]
    return found


def raises_user_error(function: ast.FunctionDef) -> bool:
    calls = [node.exc for node in ast.walk(function) if isinstance(node, ast.Raise)]
    calls += [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "raise_all"
    ]
    return any(
        isinstance(call, ast.Call) and ast.unparse(call.func) in ("UserError", "raise_all") for call in calls
    )


@pytest.mark.parametrize(
    "path", [*map(path_of, ROOMS), ROOT / "train.py", ROOT / "inference.py"], ids=lambda path: path.stem
)
def test_what_is_public_says_what_it_gives_and_what_it_refuses(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path} does not say what is in it"
    for name, node in public(tree):
        text = ast.get_docstring(node) or ""
        assert text, f"{path}: {name} has no docstring"
        # Of a command's main everyone knows
        if isinstance(node, ast.FunctionDef) and node.name != "main" and raises_user_error(node):
            assert "UserError" in text.partition("Raises:")[2], (
                f"{path}: {name} does not say when it raises UserError"
            )


PAGES = [
    ROOT / "README.md",
    ROOT / ".github/CONTRIBUTING.md",
    *sorted(ROOT.glob("pipeline/**/README.md")),
    *sorted(ROOT.glob("tests/**/README.md")),
]


def readme_commands() -> list[list[str]]:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    blocks = "\n".join(re.findall(r"^```(?:sh|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    lines = [line.split("#")[0].strip() for line in blocks.splitlines()]
    return [shlex.split(part) for line in lines for part in line.split("&&") if part.strip()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_map_names_every_module() -> None:
    text = (
        (ROOT / "pipeline/README.md")
        .read_text(encoding="utf-8")
        .partition("## The map")[2]
        .partition("\n## ")[0]
    )
    named = {name for name in re.findall(r"([\w*]+)\.py\b(?!\.txt)", text) if "*" not in name}
    for prefix in re.findall(r"(\w+)\*\.py\b", text):
        named |= {path.stem for path in ROOT.glob(f"pipeline/**/{prefix}*.py")}
    present = {path.stem for path in ROOT.glob("pipeline/**/*.py") if path.stem != "__init__"} | {
        "train",
        "inference",
    }
    assert named == present


def test_a_file_imports_only_from_files_above_it_on_the_map() -> None:
    text = (
        (ROOT / "pipeline/README.md")
        .read_text(encoding="utf-8")
        .partition("## The map")[2]
        .partition("\n## ")[0]
    )
    place: dict[str, int] = {}
    for number, name in enumerate(re.findall(r"([\w*]+)\.py\b(?!\.txt)", text)):
        rooms = [room.rpartition(".")[2] for room in ROOMS] if "*" in name else [name]
        place |= {room: number for room in rooms if fnmatch(room, name) and room not in place}
    short = {room: room.rpartition(".")[2] for room in ROOMS}
    late = [
        (room, name)
        for room in ROOMS
        for name, _ in imports(path_of(room))
        if place[short[name]] > place[short[room]]
    ]
    assert not late, f"import from a file below them on the map: {late}"


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    used = {
        word for words in readme_commands() if words[0] == "make" for word in words[1:] if "=" not in word
    }
    assert used and used <= targets


def test_every_flag_in_the_readme_is_known() -> None:
    """Each python command of the README is parsed by its own parser; --set keys and recipe names are checked
    too.
    """
    import inference
    import train
    from pipeline.config import known_keys, recipe_names

    commands = [
        words[1:]
        for words in readme_commands()
        if words[0] == "python" and words[1] in ("train.py", "inference.py")
    ]
    assert len(commands) >= 4
    for script, *arguments in commands:
        parsed = (train if script == "train.py" else inference).parse(arguments)
        for assignment in getattr(parsed, "set", []):
            assert assignment.split("=")[0] in known_keys(), assignment
        if getattr(parsed, "recipe", None) and not parsed.recipe.endswith(".yaml"):
            assert parsed.recipe in recipe_names(), parsed.recipe


def test_every_module_run_in_the_readme_answers_to_help() -> None:
    modules = {
        words[2]
        for words in readme_commands()
        if words[:2] == ["python", "-m"] and words[2].startswith("pipeline")
    }
    assert modules
    for module in sorted(modules):
        result = subprocess.run(
            [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True
        )
        assert result.returncode == 0 and "usage:" in result.stdout, module


def test_the_flags_of_train_are_frozen() -> None:
    """Scripts and people depend on them: a change here is a change of the interface."""
    import train

    known = set(vars(train.parse([])))
    assert known == {
        *"recipe data output backbone epochs batch_size accumulation_steps lr image_size lora_rank".split(),
        *"precision seed resume max_minutes dry_run set metric target positive_class".split(),
        *("folds", "fold", "parallel", "floor", "plan"),
    }


def test_lines_of_prose_have_at_most_110_characters() -> None:
    others = ("pipeline/recipes/PLAN.md", ".github/CHANGELOG.md", "data/README.md")
    pages = [*PAGES, *(ROOT / page for page in others)]
    long = []
    for page in pages:
        if "fixtures" in page.parts:  # a model card that PEFT wrote
            continue
        prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        long += [
            f"{page}: {line}" for line in prose.splitlines() if len(line) > 110 and not line.startswith("|")
        ]
    assert not long


def test_commands_of_help_texts_and_items_of_lists_begin_their_lines() -> None:
    """A text that was wrapped anew must not run a command or an item of a numbered list into the sentence
    before it.
    """
    command = re.compile(r"\S\s+(python (-m |\w+\.py)|torchrun -)")
    wrong = []
    for path in [*(ROOT / "pipeline").rglob("*.py"), ROOT / "train.py", ROOT / "inference.py"]:
        lines = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
        shown = [re.sub(r"`[^`]*`", "", line.split(" # ")[0]) for line in lines]
        wrong += [f"{path.name}: {line}" for line in shown if command.search(line)]
    for page in [*PAGES, ROOT / "pipeline/recipes/PLAN.md"]:
        wrong += [
            f"{page}: {line}"
            for line in page.read_text(encoding="utf-8").splitlines()
            if re.search(r"[a-z`)]\. \d+\. [`*]", line)
        ]
    assert not wrong
