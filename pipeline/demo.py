"""The embedded example: the whole job on handwritten digits, without an account or a download.

python -m pipeline.demo                   # make demo: train, predict, check, score, page (writes only to
                                          # data/digits and finetuned_model/digits)
# make demo-base: pretrain the tiny base from random weights, on rendered
python -m pipeline.demo --rebuild-base
                                          # letters and digits
python -m pipeline.demo --pack  # make the release zip from the demo's run, and name it in release.yaml
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import shutil
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from pipeline.demo_data import lay_out_digits, lay_out_glyphs
from pipeline.errors import EXIT_DONE, UserError, run_command
from pipeline.fetch.archives import unpack_zip
from pipeline.files import human_time, read_json, read_yaml, replacing, sha256, write_text
from pipeline.run_names import SCORES

ROOT = Path(__file__).resolve().parents[1]
MODELS, DATA = Path("finetuned_model"), Path("data")
RELEASE = MODELS / "digits-release.zip"
BASE = MODELS / "glyphs" / "model_beit"
# Files of the release: everything for prediction and for another training, without the true labels of the
# test images.
RELEASED = ("model_beit", "model_lora", "run.json", "metrics.jsonl")
RELEASED_DATA = ("train", "test", "sample_submission.csv")


def main(argv: list[str] | None = None) -> int:
    """Run the example in the project's folder. Return the exit code.

    Raises:
        UserError: a step failed and has printed the reason.
        Interrupted: a step was stopped; the same command continues.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--rebuild-base",
        action="store_true",
        help="pretrain the demo's base from random weights (about twelve minutes on two cores)",
    )
    what.add_argument("--pack", action="store_true", help="pack the demo's run into the release zip")
    args = parser.parse_args(argv)
    os.chdir(ROOT)
    if args.rebuild_base:
        return rebuild_base()
    return pack() if args.pack else demo()


def demo() -> int:
    """Train, predict and score the digits, and write the page."""
    started = time.monotonic()
    run, data = MODELS / "digits", DATA / "digits"
    print(
        "The whole job on 1,797 handwritten digits, in half a minute to a minute on two idle cores. "
        "It writes only to data/digits and finetuned_model/digits."
    )
    lay_out_digits(data)
    unpack_base()
    step(
        "fine-tune a LoRA adapter",
        *("train", "--recipe", "digits", "--data", data, "--output", run, "--resume"),
    )
    step("predict", "inference", "--model", run, "--data", data, "--output", data / "predictions.csv")
    scoring = (
        *("--solution", data / "solution.csv", "--predictions", data / "predictions.csv", "--model", run),
        *("--data", data),
    )
    step("score against the held-back labels", "pipeline.submission.score", *scoring)
    step(
        "show where the base and the fine-tuned model look, and write the page",
        *("pipeline.report.attention", "--runs", BASE, run),
    )
    accuracy = read_json(run / SCORES)["metrics"]["accuracy"]
    print(
        f"\ntest accuracy {accuracy:.4f} in {human_time(time.monotonic() - started)}; the page: "
        f"{run / 'report.html'}"
    )
    return EXIT_DONE


def rebuild_base() -> int:
    """Pretrain the base from random weights: draw the glyphs, then run the project's own train.py on them."""
    lay_out_glyphs(DATA / "glyphs")
    step(
        "pretrain on letters and digits",
        *("train", "--recipe", "glyphs", "--data", DATA / "glyphs", "--output", BASE.parent, "--resume"),
    )
    print(
        f"\nthe base is in {BASE}; `make demo` uses it from now on (remove {BASE.parent} to use the released "
        "one again)"
    )
    return EXIT_DONE


def unpack_base() -> None:
    """Unpack the released base into finetuned_model/glyphs, unless one is there.

    Raises:
        UserError: the release's archive is damaged.
    """
    if (BASE / "model.safetensors").exists():
        return
    named = read_yaml(MODELS / "release.yaml")
    if named["source"] == RELEASE.name and sha256(RELEASE) != named["sha256"]:
        raise UserError(
            f"{RELEASE} is damaged (its digest is not the one in release.yaml): git checkout -- {RELEASE}"
        )
    BASE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=MODELS) as temporary:
        unpack_zip(RELEASE, Path(temporary) / "release")
        shutil.rmtree(BASE, ignore_errors=True)
        (Path(temporary) / "release" / BASE.name).rename(BASE)


def pack() -> int:
    """Pack the demo's finished run and its competition into a release zip, and name it in release.yaml.

    The same files give the same bytes.

    Raises:
        UserError: the demo was not run yet; the message lists the missing files.
    """
    sources = [(MODELS / "digits" / name, name) for name in RELEASED] + [
        (DATA / "digits" / name, f"data/{name}") for name in RELEASED_DATA
    ]
    missing = [str(path) for path, _ in sources if not path.exists()]
    if missing:
        raise UserError(f"nothing to pack: {', '.join(missing)} missing; `make demo` makes it")
    with replacing(RELEASE) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for source, name in sources:
            files = (
                sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
            )
            for path in files:
                inside = f"{name}/{path.relative_to(source).as_posix()}" if source.is_dir() else name
                member = zipfile.ZipInfo(inside, date_time=(2026, 1, 1, 0, 0, 0))
                # Weights and PNGs hardly shrink, but there are 1,797 tiny files.
                archive.writestr(member, path.read_bytes(), zipfile.ZIP_DEFLATED)
    lines = [
        "# The release that `make weights` installs: a Google Drive id or link, an https address, or a zip "
        "beside this file.",
        f"name: handwritten digits\nsource: {RELEASE.name}\nsha256: {sha256(RELEASE)}\nsize: "
        f"{RELEASE.stat().st_size}",
    ]
    write_text(MODELS / "release.yaml", "\n".join(lines) + "\n")
    print(f"{RELEASE}: {RELEASE.stat().st_size:,} bytes; named in {MODELS / 'release.yaml'}")
    return EXIT_DONE


def step(title: str, module: str, *flags: object) -> None:
    """Run one of the project's commands as its command line does: print it, and call its `main`.

    In this process, because torch and transformers take seconds to import in each new one.

    Raises:
        UserError, Interrupted: as the command itself; or its exit code was not 0.
    """
    words = [str(flag) for flag in flags]
    command = f"-m {module}" if "." in module else f"{module}.py"
    print(f"\n--- {title}\n$ python {command} {shlex.join(words)}", flush=True)
    code = importlib.import_module(module).main(words) or EXIT_DONE
    if code != EXIT_DONE:
        raise UserError(f"the step above ended with exit code {code}: see its message")


if __name__ == "__main__":
    sys.exit(run_command(main))
