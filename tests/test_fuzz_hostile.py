"""What somebody might send on purpose: values of other types, absurd sizes, bombs, servers that misbehave,
texts that steer a terminal.

As in test_fuzz.py: a command does its work or says one clear thing. `make fuzz FUZZ=20000` runs that many
cases of each kind.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import shutil
import struct
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import make_competition
from PIL import Image
from servers import Reply, serving
from test_fuzz import CASES, survive_all
from test_transfer import endless, raw

from pipeline.cleaning.out_of_fold import read_out_of_fold
from pipeline.competition.facts import read_facts
from pipeline.competition.layout import read_layout
from pipeline.config import load_recipe
from pipeline.data.images import BadImage, decode
from pipeline.errors import UserError, run_command
from pipeline.experiments.grids import load_grid
from pipeline.fetch import sessions, transfer
from pipeline.fetch.budget import allowed_bytes
from pipeline.fetch.download import fetch
from pipeline.fetch.release_file import read_release
from pipeline.fetch.staging import stage
from pipeline.folds.team import gather
from pipeline.models.backbones import rebuild_backbone
from pipeline.models.lora import load_adapter
from pipeline.report.page import build_report
from pipeline.run import known_record

FOREIGN = (
    None,
    "",
    "x",
    "8",
    True,
    -1,
    0,
    1,
    2**70,
    1e308,
    0.5,
    [],
    {},
    [[]],
    ["x", 1],
    {"x": [1]},
    {"x": None},
    "\x1b[2J",
    "../../x",
)
HOSTILE = (
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\x1b[1A",
    "\u202e",
    "\x08",
    "\x1bc",
    "a\x1b[8mb",
    "\x00",
)


# ---- values of other types ----


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The keys that lead to each value inside `value`."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from places(inner, (*path, key))


def other_types(original: Any, draw: random.Random) -> Any:
    """`original` with one to three values taken away, or replaced by what nobody expects there."""
    value = copy.deepcopy(original)
    for _ in range(draw.randint(1, 3)):
        path = draw.choice([path for path in places(value) if path] or [()])
        if not path:
            return draw.choice(FOREIGN)
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        if draw.random() < 0.25:
            del holder[path[-1]]
        else:
            holder[path[-1]] = copy.deepcopy(draw.choice(FOREIGN))
    return value


def typed(original: Any) -> Callable[[random.Random], bytes]:
    return lambda draw: json.dumps(other_types(original, draw)).encode()


def without_weights(source: Path, target: Path) -> Path:
    return shutil.copytree(
        source, target, ignore=shutil.ignore_patterns("tensorboard", "model.safetensors", "*.pt")
    )


@pytest.fixture(scope="module")
def fold_files(tmp_path_factory: pytest.TempPathFactory, finished_run: Path) -> Path:
    """A folder with folds as `train.py --folds 2` leaves them, their models two copies of one."""
    import numpy as np

    root = tmp_path_factory.mktemp("folds")
    record = json.loads((finished_run / "run" / "run.json").read_text())
    names, scores = record["class_names"], {"accuracy": 1.0, "loss": 0.5}
    each = [{"fold": fold, "rows": 12, "value": 1.0, "epoch": 1, "scores": scores} for fold in (1, 2)]
    more = {
        "kind": "folds",
        "members": {"fold-1": 0.5, "fold-2": 0.5},
        "temperature": 1.0,
        "data": str(finished_run / "data"),
    }
    more["folds"] = {
        "count": 2,
        "rows": 24,
        "metric": "accuracy",
        "scores": scores,
        "mean": 1.0,
        "deviation": 0.0,
        "each": each,
        "notes": [],
    }
    more["decisions"] = [
        {
            "kind": "offsets",
            "numbers": [0.0] * 3,
            "before": 0.5,
            "after": 0.6,
            "gain": 0.1,
            "error": 0.01,
            "used": True,
        }
    ]
    for fold in (1, 2):
        without_weights(finished_run / "run", root / f"fold-{fold}")
    rows = [(f"{name}_{index}", name) for name in names for index in range(8)]
    (root / "oof.csv").write_text(
        "id,fold,label,predicted\n"
        + "".join(f"{row_id},{1 + number % 2},{name},{name}\n" for number, (row_id, name) in enumerate(rows))
    )
    np.save(root / "oof.npy", np.full((24, 3), 1 / 3, dtype=np.float32))
    (root / "run.json").write_text(json.dumps(record | more))
    return root


@pytest.mark.parametrize("of", ["run", "folds"])
def test_types_in_run_json(finished_run: Path, fold_files: Path, tmp_path: Path, of: str) -> None:
    run = without_weights(finished_run / "run" if of == "run" else fold_files, tmp_path / "run")

    def work() -> None:
        team = gather([run])
        assert team.describe()
        assert team.members()
        assert team.temperature is None or team.temperature > 0
        assert team.prior is None or len(team.prior)
        for one in team.named:
            assert one.record is None or (
                one.record.target.describe() and one.record.metric and one.record.task
            )
        if of == "folds":
            read_out_of_fold(run)

    survive_all(
        f"types in run.json of {of}",
        60,
        typed(json.loads((run / "run.json").read_text())),
        run / "run.json",
        work,
    )


@pytest.mark.parametrize(
    "name", ["run.json", "metrics.jsonl", "timing.jsonl", "thumbnails.jsonl", "scores.json"]
)
def test_types_in_what_a_page_reads(finished_run: Path, tmp_path: Path, name: str) -> None:
    run = without_weights(finished_run / "run", tmp_path / "run")
    (run / "scores.json").write_text(
        json.dumps({"metrics": {"accuracy": 0.5}, "rows": 3, "parts": {"private": {"accuracy": 0.5}}})
    )
    lines = [json.loads(line) for line in (run / name).read_text().splitlines()] if name.endswith("l") else []
    make = typed(lines[0]) if lines else typed(json.loads((run / name).read_text()))
    survive_all(
        f"types in {name}, its page",
        3,
        lambda draw: make(draw) + b"\n",
        run / name,
        lambda: build_report(run),
        at_most=150,
    )


@pytest.mark.parametrize("name", ["start.json", "kept.json"])
def test_types_in_the_state_of_an_unfinished_run(finished_run: Path, tmp_path: Path, name: str) -> None:
    from pipeline.training.resume import ResumedRun
    from pipeline.unfinished import resume_command, started_with

    run = without_weights(finished_run / "run", tmp_path / "run")
    (run / "run.json").unlink()

    def work() -> None:
        known_record(run)
        assert started_with(run) is not None and resume_command(run)
        former = ResumedRun.read(run, accept_changes=False)
        former.asked()
        former.check_classes(["blue", "green", "red"])

    survive_all(
        f"types in state/{name}",
        60,
        typed(json.loads((run / "state" / name).read_text())),
        run / "state" / name,
        work,
    )


def test_types_in_the_settings_of_an_adapter(finished_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished_run / "run" / "model_lora", tmp_path / "model_lora")
    place = folder / "adapter_config.json"
    model = rebuild_backbone(finished_run / "run" / "model_beit", 3).model
    survive_all(
        "types in adapter_config.json",
        40,
        typed(json.loads(place.read_text())),
        place,
        lambda: load_adapter(copy.deepcopy(model), folder),
    )


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_types_and_absurd_sizes_in_the_config_of_a_backbone(
    finished_run: Path, tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(finished_run / "run" / "model_beit", tmp_path / "model_beit")
    original = json.loads((folder / name).read_text())
    numbers = [path for path in places(original) if path and isinstance(original.get(path[0]), int)]

    def make(draw: random.Random) -> bytes:
        if draw.random() < 0.5:
            return typed(original)(draw)
        changed = copy.deepcopy(original)
        holder, key = changed, draw.choice(numbers)
        holder[key[0]] = draw.choice([10**7, 10**9, 2**63, -5, 0, 99_999, 1_000_000])
        return json.dumps(changed).encode()

    survive_all(f"types and sizes in {name}", 40, make, folder / name, lambda: rebuild_backbone(folder, 3))


# ---- bombs ----


def alias_bomb(draw: random.Random) -> bytes:
    """Levels of lists (or mappings) that each name the level before several times: a kilobyte that means
    billions of values.
    """
    key = draw.choice(["lora", "data", "rows", "weights", "slug", "name", "grid", "x"])
    levels, times = draw.randint(2, 30), draw.randint(2, 12)
    lines = ["a0: &a0 [x, x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * times)}]")
    merged = f"{key}: *a{levels - 1}" if draw.random() < 0.7 else f"{key}: {{<<: *a0}}"
    return ("\n".join([*lines, merged]) + "\n").encode()


@pytest.mark.parametrize("of", ["recipe", "grid", "release.yaml", "competition.yaml"])
def test_yaml_alias_bombs(tmp_path: Path, of: str) -> None:
    place = tmp_path / ("competition.yaml" if of == "competition.yaml" else "bomb.yaml")
    read = {
        "recipe": lambda: load_recipe(str(place)),
        "grid": lambda: load_grid(str(place)),
        "release.yaml": lambda: read_release(place),
        "competition.yaml": lambda: read_facts(tmp_path),
    }[of]
    survive_all(f"YAML alias bombs as {of}", 20, alias_bomb, place, read, always_refused=True)


def archive_in_archive(draw: random.Random, levels: int) -> bytes:
    """A zip with an image and, `levels` deep, archives that hold much of nothing."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"train/a/{draw.randrange(9)}.png", draw.randbytes(30))
        for number in range(draw.randint(1, 3)):
            if levels:
                archive.writestr(f"{number}.zip", archive_in_archive(draw, levels - 1))
            elif draw.random() < 0.5:
                archive.writestr(f"{number}.csv.gz", gzip.compress(bytes(draw.randint(1, 40) * 10**6), 9))
            else:
                archive.writestr(f"{number}.bin", bytes(draw.randint(1, 40) * 10**6))
    return whole.getvalue()


def test_nested_archives_keep_to_one_budget(tmp_path: Path) -> None:
    place, target = tmp_path / "all.zip", tmp_path / "inside" / "out"

    def work() -> None:
        target.parent.mkdir(exist_ok=True)
        try:
            stage(place, target)
        finally:
            written = sum(path.stat().st_size for path in target.parent.rglob("*") if path.is_file())
            assert written <= allowed_bytes(place.stat().st_size) + place.stat().st_size, (
                f"{written:,} bytes were written"
            )
            shutil.rmtree(target.parent)
            assert {path.name for path in tmp_path.iterdir()} == {"all.zip"}, "something was written outside"

    survive_all(
        "archives in archives",
        2,
        lambda draw: archive_in_archive(draw, draw.randint(1, 3)),
        place,
        work,
        at_most=60,
    )


def png(width: int, height: int, depth: int, colour: int, content: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(content))
        + chunk(b"IEND", b"")
    )


def absurd_header(draw: random.Random) -> bytes:
    """A small file whose header claims an image of any size."""
    width, height = (draw.choice([0, 1, 7, 5000, 11_000, 65_535, 2**31 - 1]) for _ in range(2))
    kind = draw.choice(["png", "bmp", "gif", "ppm", "qoi", "jpg", "tiff"])
    if kind == "png":
        return png(
            width,
            height,
            draw.choice([1, 2, 8, 16]),
            draw.choice([0, 2, 3, 4, 6]),
            bytes(draw.randint(0, 5000)),
        )
    if kind == "bmp":
        bits = draw.choice([1, 8, 24, 32])
        return (
            b"BM"
            + struct.pack("<IHHIIiiHHIIIIII", 200, 0, 0, 54, 40, width, height, 1, bits, 0, 0, 0, 0, 0, 0)
            + bytes(200)
        )
    if kind == "gif":
        return (
            b"GIF89a"
            + struct.pack("<HHBBB", width & 65_535, height & 65_535, 0x80, 0, 0)
            + bytes(6)
            + b","
            + bytes(40)
            + b";"
        )
    if kind == "ppm":
        return b"P6 %d %d 255\n" % (width, height) + bytes(50)
    if kind == "qoi":
        return b"qoif" + struct.pack(">IIBB", width, height, 4, 0) + bytes(60)
    whole = io.BytesIO()
    Image.new("RGB", (16, 16)).save(whole, "JPEG" if kind == "jpg" else "TIFF")
    data = bytearray(whole.getvalue())
    if kind == "jpg":
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", height & 65_535, width & 65_535)
        return bytes(data)
    for tag, value in ((256, width), (257, height)):
        place = (
            data.find(struct.pack("<HHI", tag, 4, 1))
            if struct.pack("<HHI", tag, 4, 1) in data
            else data.find(struct.pack("<HHI", tag, 3, 1))
        )
        data[place : place + 12] = struct.pack("<HHII", tag, 4, 1, value)
    return bytes(data)


def many_scans(draw: random.Random) -> bytes:
    """A progressive JPEG whose last scan is there again and again."""
    whole = io.BytesIO()
    side = draw.choice([16, 64, 300])
    Image.effect_noise((side, side), 60).convert("RGB").save(whole, "JPEG", progressive=True)
    data = whole.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * draw.choice([1, 20, 80, 200, 1000]) + b"\xff\xd9"


def test_absurd_headers_and_many_scans(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    survive_all("absurd image headers", 60, absurd_header, path, lambda: decode(path), (BadImage,))
    survive_all("JPEGs of many scans", 20, many_scans, path, lambda: decode(path), (BadImage,))


# ---- servers ----


def misbehaving(draw: random.Random, body: bytes) -> Reply:
    """An answer with headers that lie, a body that is cut, another status."""
    odd = [
        "",
        "-1",
        "x",
        "1e3",
        "0",
        "99999999999999999999",
        str(len(body)),
        str(len(body) + 5),
        str(max(0, len(body) - 5)),
        "\x7f",
        "12, 12",
    ]
    headers = {}
    if draw.random() < 0.6:
        headers["Content-Length"] = draw.choice(odd)
    if draw.random() < 0.4:
        headers["Retry-After"] = draw.choice(
            [*odd, "Wed, 99 Foo 2026", "Thu, 01 Jan 1970 00:00:00 GMT", "1.5"]
        )
    if draw.random() < 0.3:
        headers["Content-Type"] = draw.choice(
            ["text/html", "application/zip", "\x1b[2J", "application/json; charset=\x9b"]
        )
    if draw.random() < 0.2:
        headers["Content-Disposition"] = draw.choice(
            ['attachment; filename="../../x.zip"', "attachment; filename*=UTF-8''%1b%5b2J.zip", ";;;"]
        )
    if draw.random() < 0.3:
        headers["Content-Encoding"] = draw.choice(["gzip", "deflate", "br", "x"])
        if draw.random() < 0.5:
            # A body that has no end, or nearly none
            body = gzip.compress(draw.choice([body, bytes(80_000_000)]), 1)
            headers.pop("Content-Length", None)
    if draw.random() < 0.2:
        headers["Content-Range"] = draw.choice(["bytes 5-9/3", "x", "bytes */0"])
    status = draw.choice([200] * 6 + [206, 302, 404, 416, 429, 500, 503])
    if status == 302:
        headers["Location"] = draw.choice(
            ["http://169.254.169.254/x", "file:///etc/passwd", "//", "http://[::1]:1/", "\x1b[2J"]
        )
    cut = draw.choice([None, None, 0, 10, len(body) // 2])
    return Reply(body, status, headers, cut, draw.random() < 0.7)


def test_servers_that_misbehave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transfer, "TIMEOUT_S", 0.5)  # a length that is never reached is waited for so long
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("a.bin", random.Random(0).randbytes(20_000))
    body, came, draw = whole.getvalue(), Counter(), random.Random(0)
    with serving() as server:
        for number in range(min(CASES, 500) or 25):
            target = tmp_path / str(number) / "a.zip"
            server.replies["/a.zip"] = [misbehaving(draw, body) for _ in range(draw.randint(1, 3))] + [
                Reply(body)
            ] * draw.randint(0, 1)
            try:
                assert fetch(f"{server.url}/a.zip", target, sleep=lambda _: None).read_bytes() == body, (
                    f"case {number}: another file"
                )
                came["fetched"] += 1
            except UserError as error:
                assert str(error).strip() and not target.exists(), f"case {number}"
                came["refused"] += 1
            held = (
                sum(path.stat().st_size for path in target.parent.rglob("*") if path.is_file())
                if target.parent.exists()
                else 0
            )
            assert held <= allowed_bytes(0), f"case {number}: {held:,} bytes were left"
    printed = capsys.readouterr()
    assert not {"\x1b", "\x9b"} & set(printed.out + printed.err)
    assert came["fetched"] and came["refused"]
    print(
        f"servers that misbehave: {sum(came.values()):,} cases, {came['fetched']:,} fetched whole, "
        f"{came['refused']:,} refused"
    )


def slow_or_endless(draw: random.Random) -> tuple[bytes, Callable[[], Iterator[bytes]]]:
    """The head of an answer, and what follows it without end: a byte now and then, or as fast as it goes,
    packed in some way or not.
    """
    packer = zlib.compressobj(9, wbits=31)
    start = packer.compress(bytes(200_000)) + packer.flush(zlib.Z_SYNC_FLUSH)
    bodies = {
        "drip": (b"", draw.choice([b"P", b"\n", b"\0"])),
        "flood": (b"", draw.choice([bytes(300_000), draw.randbytes(300_000)])),
        "packed zeros": (start, packer.compress(bytes(3_000_000)) + packer.flush(zlib.Z_SYNC_FLUSH)),
        "packed nothing": (start, b"\0\0\0\xff\xff" * draw.choice([1, 5000])),
        "packed drip": (start, start[10:11]),
        "pieces": (
            b"",
            draw.choice(
                [b"1\r\nP\r\n", b"1;x=" + b"y" * 2000 + b"\r\nP\r\n", b"40000\r\n" + bytes(0x40000) + b"\r\n"]
            ),
        ),
        "head": (b"", draw.choice([b"x", b"x\r\nY: y", b"\r"])),
    }
    kind = draw.choice(list(bodies))
    first, piece = bodies[kind]
    status = draw.choice(
        [b"200 OK"] * 5 + [b"206 Partial Content", b"302 Found", b"404 Not Found", b"503 Busy"]
    )
    headers = [b"HTTP/1.1 " + status]
    headers += (
        [b"Content-Encoding: gzip"]
        if "packed" in kind
        else [b"Transfer-Encoding: chunked"]
        if kind == "pieces"
        else []
    )
    headers += [b"Location: /b.zip"] if draw.random() < 0.3 else []
    headers += (
        [draw.choice([b"Content-Type: text/html", b"Content-Type: application/zip"])]
        if draw.random() < 0.3
        else []
    )
    head = b"\r\n".join(headers) + (b"\r\nX: " if kind == "head" else b"\r\n\r\n") + first
    return head, endless(piece, 0.01 if len(piece) < 5000 else 0.0)


def test_servers_that_are_slow_or_never_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, seconds in (("TIMEOUT_S", 0.3), ("SLOW_WINDOW_S", 0.05)):
        monkeypatch.setattr(transfer, name, seconds)
    monkeypatch.setattr(sessions, "HEAD_S", 0.05)
    monkeypatch.setattr(transfer, "MAX_DOWNLOAD_BYTES", 3 * 10**6)
    monkeypatch.setattr(transfer, "MAX_DOWNLOAD_S", 0.5)
    draw, longest, count = random.Random(0), 0.0, min(CASES, 300) or 12
    for number in range(count):
        head, body = slow_or_endless(draw)
        began = time.monotonic()
        target = tmp_path / str(number) / "a.zip"
        with raw(head, body) as url, pytest.raises(UserError) as refused:
            fetch(f"{url}/a.zip", target, sleep=lambda _: None)
        assert str(refused.value).strip() and not target.exists(), f"case {number}: {head[:200]!r}"
        longest = max(longest, time.monotonic() - began)
        held = (
            sum(path.stat().st_size for path in target.parent.rglob("*") if path.is_file())
            if target.parent.exists()
            else 0
        )
        assert held <= 3 * 10**6 + 10**6, f"case {number}: {held:,} bytes were left"
    print(
        f"servers that are slow or never end: {count:,} cases, all refused, the longest after {longest:.1f} s"
    )


# ---- texts that steer a terminal ----


def test_foreign_names_steer_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of classes, files and columns, and cells, as a downloaded competition brings them: through
    `train.py --dry-run` and `make look`.
    """
    import train
    from pipeline.look import show

    draw, came = random.Random(0), Counter()
    for number in range(min(CASES, 40) or 1):
        data = make_competition(tmp_path / str(number), per_class=4, test=2)
        text = draw.choice(HOSTILE[:-1])
        for folder in draw.sample(sorted((data / "train").iterdir()), 2):
            folder.rename(folder.with_name(f"{text}{folder.name}"))
        image = draw.choice(sorted((data / "train").glob("*/*.png")))
        image.rename(image.with_name(f"{text}.png"))
        table = (data / "sample_submission.csv").read_text()
        if draw.random() < 0.5:
            (data / "sample_submission.csv").write_text(
                table.replace(draw.choice(["label", "id", "red", "t001"]), text)
            )
        if draw.random() < 0.3:
            (data / f"{text}.csv").write_text(f"{text},x\n1,2\n")
        for command, words in (
            (train, ["--dry-run", "--data", str(data)]),
            (show, ["--data", str(data), "--output", str(tmp_path / "look")]),
        ):
            flags = ["--backbone", str(tmp_path / f"none{text}")] if command is train else []
            with suppress(SystemExit):
                came[
                    run_command(
                        lambda command=command, words=words, flags=flags: command.main([*words, *flags])
                    )
                ] += 1
            printed = capsys.readouterr()
            found = (
                set(printed.out + printed.err)
                & set("".join(HOSTILE).replace("[", "").replace("]", ""))
                & set("\x1b\x07\x9b\u202e\x08\x00")
            )
            assert (
                not found - {"\x1b"}
                and printed.err.count("\x1b") == printed.err.count("\x1b[A")
                and "\x1b" not in printed.out
            ), found
            assert "Traceback" not in printed.err
        shutil.rmtree(data)
        shutil.rmtree(tmp_path / "look", ignore_errors=True)
    print(
        f"names that steer a terminal: {sum(came.values()):,} commands, {came[0]:,} done, {came[2]:,} refused"
    )
    assert set(came) <= {0, 2}


def test_foreign_cells_steer_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cells of tables: what is refused names the cell, and the terminal shows it as letters."""
    data = make_competition(tmp_path / "data", per_class=2, test=2)
    original = (data / "sample_submission.csv").read_text()

    def hostile(draw: random.Random) -> bytes:
        text = list(original)
        for _ in range(draw.randint(1, 3)):
            text.insert(draw.randrange(len(text)), draw.choice(HOSTILE))
        return "".join(text).encode()

    def work() -> None:
        code = run_command(lambda: read_layout(data) and None)
        printed = capsys.readouterr()
        assert not set("\x1b\x07\x9b\u202e\x08\x00") & set(printed.out + printed.err), printed
        if code:
            raise UserError(printed.err)

    survive_all("cells that steer a terminal", 60, hostile, data / "sample_submission.csv", work)
