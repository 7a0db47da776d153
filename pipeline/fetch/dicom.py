"""Convert DICOM files to grey images with pydicom: by each file's own window if all have one, else one range
for the set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.fetch.grey_range import Rule, Survey
from pipeline.fetch.pixels import in_threads, new_file
from pipeline.fetch.staged_rows import Staged
from pipeline.wording import counted

SUFFIXES = (".dcm", ".dicom", ".dic")
USUAL = "usual window of DICOM files"  # a decision
WINDOW = ("WindowCenter", "WindowWidth")
USUAL_PIXELS = 4_000_000  # of a radiograph
SURVEYED = 200  # files that are read for the grey range, spread over the set
INSTALL = "python -m pip install pydicom"
DECODERS = ("pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg")  # of compressed files
MORE = f"python -m pip install {' '.join(DECODERS)}"


def is_dicom(path: Path) -> bool:
    """Return True for a DICOM file, by its suffix; without one by its first bytes.

    A name may be a UID, such as 1.2.840.10, which has no suffix.
    """
    if path.suffix.lower() in SUFFIXES:
        return True
    if "." in path.name and not path.suffix[1:].isdigit():
        return False
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _stem(path: Path) -> str:
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def convert(stage: Staged) -> None:
    """Write a PNG in place of each DICOM file below `stage.root`, with its name (several frames:
    `name_0.png`, ...).

    Files that cannot be read are kept and noted with the reason.

    Raises:
        UserError: pydicom is not installed, or no file can be read.
    """
    found = [path for path in stage.files(("",)) if is_dicom(path)]
    paths = [path for path in found if not path.with_name(f"{_stem(path)}.png").exists()]
    if len(paths) < len(found):
        stage.notes.append(
            f"{counted(len(found) - len(paths), 'DICOM file')} kept: a .png of the same name lies beside each"
        )
    if not paths:
        return
    pydicom, failed = _pydicom(len(paths)), {}
    windows: list[Rule] = []
    windowed = stage.decide("windows of DICOM files", lambda: all(_note_windows(paths, windows)))
    if windowed:
        says, rule = "the window of each file (VOI LUT)", stage.rule(USUAL, lambda: _middle(windows))
    else:
        rule = stage.rule("grey levels of DICOM files", lambda: _survey(paths).rule())
        says = rule.says
    lacking = []  # windows: other files of the set all have one

    def write(path: Path) -> tuple[set[str], str]:
        """Return the packages that the file needed, and why it cannot be read."""
        try:
            data = pydicom.dcmread(path)
            by_window = windowed and _has_window(data)
            if windowed and not by_window:
                lacking.append(path)
            images = _images(data, rule, by_window)
        except Exception as error:  # pydicom and its decoders raise many types on damaged files
            return set(), " ".join(str(error).split()) or type(error).__name__
        for number, planes in enumerate(images):
            name = f"{_stem(path)}_{number}" if len(images) > 1 else _stem(path)
            stage.save(planes, path.with_name(f"{name}.png"))
        path.unlink()
        return _needed(data), ""

    for path, (needed, problem) in zip(paths, in_threads(write, paths, "DICOM", USUAL_PIXELS), strict=True):
        stage.packages |= needed
        if problem:
            failed[path] = problem
    if lacking:
        says += f"; {counted(len(lacking), 'file')} without a window: {rule.says}"
    _report(stage, paths, failed, says)
    if stage.repeated is not None:  # as any damaged image: its id gets the class frequencies of training
        for path in failed:
            new_file(path.with_name(f"{_stem(path)}.png")).close()
            path.unlink()


def _survey(paths: list[Path]) -> Survey:
    """Return the grey range of some files, spread over the set."""
    import pydicom

    survey = Survey()
    for path in paths[:: max(1, len(paths) // SURVEYED)]:
        try:
            for frame in _frames(pydicom.dcmread(path)):
                if frame.shape[0] == 1:
                    survey.add(frame)
        except Exception:  # reported later, where every file is read
            continue
    return survey


def _needed(data: Any) -> set[str]:
    """Return the installed packages that reading this file needs, or may need if it is compressed."""
    syntax = getattr(data.file_meta, "TransferSyntaxUID", None)
    decoders = DECODERS if syntax is not None and syntax.is_compressed else ()
    return {"pydicom", *(name for name in decoders if _is_installed(name))}


@cache
def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def _report(stage: Staged, paths: list[Path], failed: dict[Path, str], says: str) -> None:
    reasons = [f"{stage.shown(path)}: {reason[:300]}" for path, reason in list(failed.items())[:3]]
    plugin = any(
        "plugin" in reason or "decode" in reason or "handler" in reason for reason in failed.values()
    )
    more = f"; compressed files may need: {MORE}" if plugin else ""
    if len(failed) == len(paths):
        raise UserError(
            f"none of {counted(len(paths), 'DICOM file')} can be read{more}\n  - " + "\n  - ".join(reasons)
        )
    if failed:
        stage.notes.append(
            f"{counted(len(failed), 'DICOM file')} cannot be turned into images{more}: {'; '.join(reasons)}"
        )
    stage.notes.append(
        f"{counted(len(paths) - len(failed), 'DICOM file')} converted to images in place; grey levels: "
        f"{says}; MONOCHROME1 is inverted"
    )


def _pydicom(count: int) -> Any:
    try:
        import pydicom
    except ImportError:
        raise UserError(
            f"{counted(count, 'DICOM file')} need one more package: {INSTALL}; then run the command again"
        ) from None
    return pydicom


def _note_windows(paths: list[Path], windows: list[Rule]) -> Iterator[bool]:
    """Yield for each file whether it has a window or needs none, and add the windows to `windows`."""
    for data in _headers(paths):
        has = _has_window(data)
        if has and not _is_colour(data) and (window := _window(data)):
            windows.append(window)
        yield has


def _middle(windows: list[Rule]) -> Rule:
    """Return the usual window of a set, for other files of it that have none."""
    if not windows:
        return Rule((0,), (255,), "no window is known, 0 becomes black and 255 white")
    ends = ([window.low[0] for window in windows], [window.high[0] for window in windows])
    low, high = (float(np.median(values)) for values in ends)
    return Rule((low,), (max(high, low + 1),), f"the usual one of the set, {low:.4g} to {high:.4g}")


def _headers(paths: list[Path]) -> Iterator[Any]:
    """Yield the tags of each file without its pixels. Files that cannot be read are reported later."""
    import pydicom

    for path in paths:
        with suppress(Exception):  # pydicom raises many types on damaged files
            yield pydicom.dcmread(path, stop_before_pixels=True)


def _has_window(data: Any) -> bool:
    window = all(np.size(data.get(name)) and data.get(name) is not None for name in WINDOW)
    return window or bool(data.get("VOILUTSequence")) or _is_colour(data)


def _is_colour(data: Any) -> bool:
    return int(data.get("SamplesPerPixel", 1)) == 3 or _has_palette(data)


def _has_palette(data: Any) -> bool:
    return data.get("PhotometricInterpretation") == "PALETTE COLOR"


def _frames(data: Any) -> list[np.ndarray]:
    """Return (C, H, W) of each frame, in the modality's units (Hounsfield, ...)."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    pixels = data.pixel_array
    if _has_palette(data):
        pixels = apply_color_lut(pixels, data)[..., :3]
    if _is_colour(data):
        return [frame.transpose(2, 0, 1) for frame in (pixels if pixels.ndim == 4 else pixels[None])]
    frames = pixels if pixels.ndim == 3 else pixels[None]
    return [np.asarray(apply_modality_lut(frame, data))[None] for frame in frames]


def _images(data: Any, rule: Rule, windowed: bool) -> list[np.ndarray]:
    images = []
    for frame in _frames(data):
        if frame.shape[0] == 3:
            bits = 8 * frame.itemsize if _has_palette(data) else int(data.get("BitsStored", 8))
            high = 2**bits - 1
            images.append(Rule((0,), (high,), "").apply(frame))
            continue
        levels = (_window(data) or _lut_range(data, frame) if windowed else rule).apply(
            _looked_up(data, frame) if windowed else frame
        )
        images.append(255 - levels if data.get("PhotometricInterpretation") == "MONOCHROME1" else levels)
    return images


def _window(data: Any) -> Rule | None:
    """Return the file's first window as a rule (DICOM PS3.3 C.11.2.1.2, linear); None if it has a VOI look-up
    table.
    """
    if "VOILUTSequence" in data:
        return None
    centre, width = (float(np.ravel(data[name].value)[0]) for name in WINDOW)
    if data.get("VOILUTFunction", "LINEAR") == "LINEAR_EXACT":
        return Rule((centre - width / 2,), (centre + max(width, 1) / 2,), "")
    return Rule((centre - 0.5 - (width - 1) / 2,), (centre - 0.5 + (max(width, 2) - 1) / 2,), "")


def _looked_up(data: Any, frame: np.ndarray) -> np.ndarray:
    if "VOILUTSequence" not in data:
        return frame
    from pydicom.pixels import apply_voi_lut

    return np.asarray(apply_voi_lut(frame[0], data, prefer_lut=True))[None]


def _lut_range(data: Any, frame: np.ndarray) -> Rule:
    bits = int(data.VOILUTSequence[0].LUTDescriptor[2])
    return Rule((0,), (2**bits - 1,), "")
