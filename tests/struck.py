"""Strike commands at random moments (a kill, a failing or full disk, too many open files), run them again,
compare with an undisturbed one.

python tests/struck.py SCENE FIRST COUNT FOLDER

SCENE is a name of `SCENES`, or `all`. One line of JSON for each try. A command that is struck ends killed,
done, or with one message; the same command again (training: with --resume) ends with what it would have
given, and nothing of the user's is changed.
"""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.sharedctypes import RawValue
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from conftest import colour_patch, make_competition  # noqa: E402
from transformers import BeitConfig, BeitForImageClassification  # noqa: E402

import inference  # noqa: E402
import train  # noqa: E402
from pipeline.errors import run_command  # noqa: E402
from pipeline.fetch import install, releases  # noqa: E402
from pipeline.folds import assembly, blend, training  # noqa: E402, F401
from pipeline.kaggle import cli, submit  # noqa: E402
from pipeline.kaggle.ledger import append_row, read_ledger  # noqa: E402
from pipeline.kernel import make as kernel  # noqa: E402
from pipeline.report import page  # noqa: E402
from pipeline.run import load_run  # noqa: E402
from pipeline.tasks import classification  # noqa: E402, F401
from pipeline.training import engine  # noqa: E402, F401

FLAGS = "--data data --backbone backbone --batch-size 6 --accumulation-steps 1 --lr 0.01 --epochs 2".split()
FLAGS += ["--precision", "fp32", "--set", "data.workers=0"]
POINTS = ("replace", "rename", "mkdir", "fsync", "link", "open")  # where a command touches the disk
ERRORS = ("ENOSPC", "EDQUOT", "EROFS", "EIO", "ESTALE")
STRIKES = ("killed before", "killed after", "killed any time", *ERRORS, "EFBIG", "EMFILE")


# ---- what strikes ----


@contextmanager
def counted(work: Callable[[int, Callable[[], object]], object]) -> Iterator[None]:
    """Every touch of the disk goes through `work` (its number, the touch itself)."""
    number, before = 0, [(owner, name, getattr(owner, name)) for owner, name in _places()]

    def through(original: Callable[..., object], is_open: bool) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal number
            mode = args[1] if len(args) > 1 else kwargs.get("mode", "r")
            if is_open and not (isinstance(mode, str) and set(mode) & set("wax+")):
                return original(*args, **kwargs)
            number += 1
            return work(number - 1, lambda: original(*args, **kwargs))

        return call

    for owner, name, original in before:
        setattr(owner, name, through(original, name == "open"))
    try:
        yield
    finally:
        for owner, name, original in before:
            setattr(owner, name, original)


def _places() -> list[tuple[object, str]]:
    return [*((os, name) for name in POINTS if name != "open"), (io, "open"), (builtins, "open")]


@contextmanager
def strike(kind: str, touches: int, seconds: float, draw: random.Random) -> Iterator[None]:
    """`kind` comes once, at a random one of the `touches` that an undisturbed command makes, or within its
    `seconds`.
    """
    chosen = draw.randrange(max(touches, 1))

    def work(number: int, touch: Callable[[], object]) -> object:
        if number == chosen and kind in ERRORS:
            raise OSError(getattr(errno, kind), os.strerror(getattr(errno, kind)), "somewhere")
        if number == chosen and kind == "killed before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = touch()
        if number == chosen and kind == "killed after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    if kind == "killed any time":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process at once, as SIGKILL does
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.001, seconds))
    elif kind == "EFBIG":  # the system's own: also C++ and Rust meet it, in the middle of a write
        limit = int(10 ** draw.uniform(0, 5.5))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    elif kind == "EMFILE":
        limit = len(os.listdir("/dev/fd")) + draw.randrange(12)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    with counted(work):
        yield


def in_a_fork(work: Callable[[], int]) -> tuple[int, str]:
    """The wait status of a fork that runs `work`, and what it printed (through a pipe: a limit of file sizes
    does not cut it).
    """
    sys.stdout.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        os.close(writing)
        torch.set_num_threads(1)  # threads of OpenMP do not survive a fork
        code = 99
        try:
            code = work()
            sys.stdout.flush()
        except BaseException:
            resource.setrlimit(resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE)[1:] * 2)
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading, "rb") as pipe:
        printed = pipe.read().decode("utf-8", "replace")
    return os.waitpid(child, 0)[1], printed


# ---- what is struck ----


@dataclass(frozen=True)
class Scene:
    """A command in the present folder, the same once more, and what it leaves that must be the same whatever
    happened before.
    """

    prepare: Callable[[], None]
    command: Callable[[], int]
    again: Callable[[], int]
    left: Callable[[], dict[str, object]]
    meanwhile: Callable[[], None] = lambda: None  # looks between the two


def digests(*paths: str, hidden: bool = False) -> dict[str, object]:
    """Path -> digest of every file under `paths`."""
    found = {}
    for path in map(Path, paths):
        for file in sorted(path.rglob("*") if path.is_dir() else [path]):
            if file.is_file() and (hidden or not any(part.startswith(".") for part in file.parts)):
                found[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def colours() -> None:
    if Path("data").exists():
        return
    make_competition(Path("data"), per_class=6)
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
    }
    BeitForImageClassification(BeitConfig(**sizes, use_mean_pooling=True, num_labels=5)).save_pretrained(
        "backbone"
    )


def trained(name: str, seed: int = 0) -> None:
    colours()
    arguments = [
        *FLAGS,
        *("--epochs", "1", "--set", "data.val_fraction=0.4", "--output", name, "--seed", str(seed)),
    ]
    assert train.main(arguments) == 0


def archives() -> None:
    """1.zip, installed, is a release of a run; 2.zip is the project's own, with data in it."""
    trained("run")
    with zipfile.ZipFile("1.zip", "w") as archive:
        for path in sorted(Path("run").glob("model_*/*")):
            archive.write(path, path.relative_to("run"))
    shutil.copy(ROOT / "finetuned_model" / "digits-release.zip", "2.zip")
    Path("models").mkdir()
    Path("models/README.md").write_text("mine\n")
    assert releases.main(["--weights", "1.zip", "--model", "models", "--data", "installed"]) == 0
    shutil.rmtree("installed", ignore_errors=True)


def one_of_two_releases() -> None:
    """What is taken for a model between the two commands is all of one release."""
    try:
        run = load_run(Path("models"))
    except ValueError as error:
        assert "`make weights`" in str(error) or "make weights" in str(error), error
        return
    size = json.loads((run.backbone_dir / "config.json").read_text())["hidden_size"]
    assert (run.adapter_dir is not None) and (run.path / "run.json").exists() == (size != 32), (
        "parts of two releases"
    )


def downloaded() -> None:
    """An archive in an archive: images in class folders, and a table of pixels for the test part."""
    colours()
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        for path in sorted(Path("data/train").rglob("*.png")):
            archive.write(path, path.relative_to("data"))
    Path("kaggle").mkdir()
    with zipfile.ZipFile("kaggle/all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.zip", inner.getvalue())
        pixels = np.random.default_rng(0).integers(0, 256, (6, 64))
        lines = ["id," + ",".join(f"pixel{number}" for number in range(64))]
        archive.writestr(
            "test.csv",
            "\n".join([*lines, *(f"t{row}," + ",".join(map(str, line)) for row, line in enumerate(pixels))]),
        )
        archive.writestr("sample_submission.csv", "id,label\n" + "".join(f"t{row},red\n" for row in range(6)))
    Path("taken").mkdir()
    Path("taken/README.md").write_text("mine\n")


def take() -> int:
    return run_command(lambda: install.main(["--from", "kaggle", "--data", "taken"]))


def take_again() -> int:
    code = take()
    return (
        0
        if code == 2
        and (Path("taken") / "sample_submission.csv").exists()
        and not list(Path("taken").glob(".from*"))
        else code
    )


def two_members() -> None:
    """Two runs whose errors on the same rows are their own, so that a blend beats each."""
    trained("a")
    shutil.copytree("a", "b")
    record = json.loads(Path("a/run.json").read_text())
    rows = Path("a/val_predictions.csv").read_text().splitlines()
    names = record["class_names"]
    truth = np.array([names.index(rows[1 + number % (len(rows) - 1)].split(",")[2]) for number in range(60)])
    for seed, name in enumerate("ab"):
        logits = 1.2 * np.eye(len(names))[truth] + np.random.default_rng(seed).normal(0, 1, (60, len(names)))
        values = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
        np.save(f"{name}/val_probs.npy", values)
        lines = [
            f"r{row},,{names[label]},{names[values[row].argmax()]},{values[row].max():.6f}"
            for row, label in enumerate(truth)
        ]
        Path(name, "val_predictions.csv").write_text("\n".join([rows[0], *lines]) + "\n")
        Path(name, "run.json").write_text(
            json.dumps(record | {"metric": {"name": "log_loss", "higher_is_better": False}})
        )


def facts_of(path: str, *names: str) -> dict[str, object]:
    """Some values of a run.json."""
    record = json.loads(Path(path, "run.json").read_text())
    return {name: record.get(name) for name in names}


def predict() -> int:
    return run_command(lambda: inference.main(["--model", "run", "--data", "data", "--precision", "fp32"]))


def with_former() -> None:
    trained("run")
    Path("predictions.csv").write_text("made by hand\n")


def predictions_left() -> dict[str, object]:
    formers = [path.read_text() for path in Path().glob("predictions-former*.csv")]
    return {
        **digests("predictions.csv"),
        "made by hand": "made by hand\n" in formers,
        "former": len(set(formers)),
    }


def make_kernel() -> int:
    words = ["--model", "run", "--data", "data", "--competition", "colours", "--precision", "fp32"]
    kernel._rehearse = lambda *_: 0.0  # another process, tested elsewhere
    return run_command(lambda: kernel.main(words))


def kernel_left() -> dict[str, object]:
    return digests("run/kernel/kernel", "run/kernel/dataset") | {
        "earlier": Path("run/kernel/earlier").exists()
    }


def append(name: str, count: int) -> int:
    for number in range(count):
        append_row(Path("submissions.csv"), {"message": f"{name} {number}", "status": "pending", "time": "t"})
        with open("acknowledged", "a") as file:
            file.write(f"{name} {number}\n")
    return 0


def append_struck() -> int:
    return run_command(lambda: append("struck", 12))


def ledger_left() -> dict[str, object]:
    """Rows that were acknowledged are there, and those that came after."""
    kept = {row["message"] for row in read_ledger(Path("submissions.csv"))[1]}
    told = set(Path("acknowledged").read_text().split("\n")) - {""}
    return {"lost": sorted(told - kept), "again": sum(name.startswith("again") for name in kept)}


# A Kaggle of its own: how many files it was sent, in memory that forks share, for each of them would have
# another copy of a list.
SENT = RawValue("i", 0)


def ready_to_submit() -> None:
    for number in "34":
        colour_patch(Path(f"data/test/{number}.png"), (200, 50, 40), int(number))
    Path("data/sample_submission.csv").write_text("id,label\n3,cat\n4,cat\n")
    Path("predictions.csv").write_text("id,label\n3,cat\n4,dog\n")


def kaggle_takes(*_: object, **__: object) -> cli.Upload:
    SENT.value += 1
    return cli.Upload(str(SENT.value), "")


def kaggle_lists(*_: object, **__: object) -> list[cli.Submission]:
    moment = datetime.now(UTC)
    return [
        cli.Submission(str(ref), "predictions.csv", moment, "m", "complete", "0.5", "", "")
        for ref in range(1, SENT.value + 1)
    ]


def send() -> int:
    cli.not_ready, cli.upload, cli.list_submissions = list, kaggle_takes, kaggle_lists
    words = ["--competition", "birds", "--message", "m", "--model", "nobody"]
    return run_command(lambda: submit.main(words, sleep=lambda _: None))


def send_again() -> int:
    code = send()  # 2: it is in the ledger, and a file that was sent is not sent again
    return 0 if code == 2 and read_ledger(Path("submissions.csv"))[1] else code


def sent_once() -> dict[str, object]:
    count, SENT.value = SENT.value, 0
    lines = [(row["status"], row["public_score"]) for row in read_ledger(Path("submissions.csv"))[1]]
    return {"sent": count, "rows": len(lines), "notes": len(list(Path().glob(".submissions.csv.begun")))}


def build_page() -> int:
    return run_command(lambda: page.main(["--run", "run"]))


def whole_page() -> None:
    assert Path("run/report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")


def training_of(output: str, *more: str) -> Callable[[], int]:
    return lambda: run_command(lambda: train.main([*FLAGS, "--output", output, *more]))


RUN_FILES = ("metrics.jsonl", "val_predictions.csv", "val_probs.npy", "model_lora", "model_beit")
FOLD_FILES = (
    "folds/oof.npy",
    "folds/oof.csv",
    "folds/folds.csv",
    *(f"folds/fold-{number}/{name}" for number in "12" for name in RUN_FILES),
)
SCENES = {
    "weights": Scene(
        archives,
        lambda: run_command(
            lambda: releases.main(["--weights", "2.zip", "--model", "models", "--data", "installed"])
        ),
        lambda: run_command(
            lambda: releases.main(["--weights", "2.zip", "--model", "models", "--data", "installed"])
        ),
        lambda: digests(
            "installed", *(f"models/{name}" for name in ("model_beit", "model_lora", "run.json", "README.md"))
        ),
        one_of_two_releases,
    ),
    "data": Scene(downloaded, take, take_again, lambda: digests("taken", "kaggle")),
    "train": Scene(
        colours,
        training_of("run"),
        training_of("run", "--resume"),
        lambda: digests(*(f"run/{name}" for name in RUN_FILES), "data"),
    ),
    "folds": Scene(
        colours,
        training_of("folds", "--folds", "2"),
        training_of("folds", "--folds", "2", "--resume"),
        lambda: digests(*FOLD_FILES, "data"),
    ),
    "blend": Scene(
        two_members,
        lambda: run_command(lambda: blend.main(["--runs", "a", "b", "--output", "blend"])),
        lambda: run_command(lambda: blend.main(["--runs", "a", "b", "--output", "blend"])),
        lambda: (
            digests("blend/oof.npy", "blend/val_probs.npy", "a", "b")
            | facts_of("blend", "members", "blend", "best")
        ),
    ),
    "kernel": Scene(lambda: trained("run"), make_kernel, make_kernel, kernel_left),
    "inference": Scene(with_former, predict, predict, predictions_left),
    "ledger": Scene(
        lambda: append("before", 2) and None,
        append_struck,
        lambda: run_command(lambda: append("again", 2)),
        ledger_left,
    ),
    "submit": Scene(ready_to_submit, send, send_again, sent_once),
    "page": Scene(
        lambda: trained("run"),
        build_page,
        build_page,
        lambda: digests("run/model_lora", "run/metrics.jsonl"),
        whole_page,
    ),
}


# ---- one try after the other ----


def tries(scene: Scene, name: str, root: Path, first: int, count: int) -> Iterator[dict[str, object]]:
    """What came of each try."""
    pristine = root / "pristine"
    pristine.mkdir(parents=True)
    _do(pristine, lambda: scene.prepare() or 0)
    whole = shutil.copytree(pristine, root / "whole", symlinks=True)
    touches, started = root / "touches", time.monotonic()

    def undisturbed() -> int:
        numbers: list[int] = []

        def work(number: int, touch: Callable[[], object]) -> object:
            numbers.append(number)
            return touch()

        with counted(work):
            code = scene.command()
        touches.write_text(str(len(numbers)))
        return code

    _do(whole, undisturbed)
    seconds, num_touches = time.monotonic() - started, int(touches.read_text())
    if name == "ledger":
        _do(whole, scene.again)
    expected = _left(whole, scene)
    for number in range(first, first + count):
        draw, place = random.Random(f"{name} {number}"), root / "try"
        kind = STRIKES[number % len(STRIKES)]
        shutil.copytree(pristine, place, symlinks=True)

        def struck(kind: str = kind, draw: random.Random = draw) -> int:
            with strike(kind, num_touches, seconds, draw):
                return scene.command()

        status, printed = _at(place, struck)
        killed = os.WIFSIGNALED(status)
        told = f"{name} {number}, {kind}\n{printed}"
        assert killed or (os.WEXITSTATUS(status) in (0, 2, 130) and "Traceback" not in printed), told
        assert killed or os.WEXITSTATUS(status) != 2 or "error: " in printed, told
        _do(place, lambda: scene.meanwhile() or 0, told)
        once_more = _do(place, scene.again, told)
        left = _left(place, scene)
        assert left == expected, (
            told,
            once_more,
            {key: (left.get(key), expected.get(key)) for key in {*left, *expected}},
        )
        yield {
            "scene": name,
            "number": number,
            "strike": kind,
            "came": "killed" if killed else os.WEXITSTATUS(status),
        }
        shutil.rmtree(place)
    shutil.rmtree(root)


def _left(place: Path, scene: Scene) -> dict[str, object]:
    before = os.getcwd()
    os.chdir(place)
    try:
        return scene.left()
    finally:
        os.chdir(before)


def _at(place: Path, work: Callable[[], int]) -> tuple[int, str]:
    def inside() -> int:
        os.chdir(place)
        return work()

    return in_a_fork(inside)


def _do(place: Path, work: Callable[[], int], before: str = "") -> str:
    """What `work`, which must succeed, printed."""
    status, printed = _at(place, work)
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0 and "Traceback" not in printed, (
        f"{before}\n--- then:\n{printed}"
    )
    return printed


def main() -> None:
    name, first, count, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    for scene in SCENES if name == "all" else [name]:
        came: Counter[str] = Counter()
        for line in tries(SCENES[scene], scene, folder / scene, first, count):
            came[{0: "done", 2: "refused", 130: "interrupted"}.get(line["came"], "killed")] += 1
            print(json.dumps(line), flush=True)
        print(
            f"{scene}: {sum(came.values())} tries, "
            + ", ".join(f"{number} {what}" for what, number in sorted(came.items())),
            flush=True,
        )


if __name__ == "__main__":
    main()
