"""Find the image file of each question."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from pipeline.competition.folders import DataFolder, absent, check_whole, plain_name
from pipeline.competition.id_styles import file_name, without_suffix
from pipeline.competition.ids import ImageIndex
from pipeline.competition.vqa_files import Question
from pipeline.wording import MAX_NAMED, capped, counted, listed, quoted


def images_of(folder: DataFolder, split: str) -> list[str]:
    """Return the images of a split.

    These are the images of all folders with its name (`images/train2014/`), else of folders that begin so
    (`train_images/`), else all images.

    Raises:
        UserError: there are no images, or they are in archives.
    """
    wanted = plain_name(split)
    # test-dev2015 asks about the images of test2015
    year = re.fullmatch(r"(train|val|test)[a-z]*(\d*)", wanted)
    names = {wanted, "".join(year.groups())} - {""} if year else {wanted} - {""}
    every = folder.images(folder.scans)
    if not every:
        expected = (
            f"{split}/COCO_{split}_000000000001.jpg" if year and year.group(2) else "a folder with the images"
        )
        raise absent(
            folder, f"images for the questions of {split or 'the JSON files'}", f"expected {expected}"
        )
    own = [image for image in every if any(plain_name(part) in names for part in image.split("/")[:-1])]
    if not own and year:
        own = folder.images(folder.named(year.group(1)))
    images = own or every
    check_whole(folder, {image.split("/")[0] if "/" in image else "" for image in images})
    return images


def find_images(index: ImageIndex, questions: Iterable[Question]) -> dict[str, tuple[str, ...]]:
    """Return the possible files of each image that a question is about.

    Images are found by COCO number (the last digits of a file name), or by name as in tables.
    """
    asked = list(dict.fromkeys(question.image for question in questions))
    if asked and all(image.isdecimal() for image in asked):
        by_number: dict[str, list[str]] = {}
        for image in index.images:
            if digits := re.search(r"[0-9]+$", without_suffix(file_name(image))):
                by_number.setdefault(digits.group().lstrip("0"), []).append(image)
        found = {image: tuple(by_number.get(image.lstrip("0"), ())) for image in asked}
        if any(found.values()):
            return found
    return dict(zip(asked, index.match(asked).images, strict=True))


def image_problems(
    questions: Sequence[Question],
    found: Mapping[str, Sequence[str]],
    place: str,
    index: ImageIndex,
    advice: str,
) -> tuple[list[str], list[str]]:
    """List questions without an image, and with several.

    `place`: the noun for `Question.place` (entry or row).
    """
    missing = [question for question in questions if not found[question.image]]
    several = [question for question in questions if len(found[question.image]) > 1]
    problems = []
    if missing:
        shown = listed(
            f"{question.image!r} of question_id {question.id} ({place} {question.place})"
            for question in missing[:MAX_NAMED]
        )
        more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
        look = f"images look like {quoted(index.images[:2])}"
        problems.append(
            f"{len(missing):,} of {counted(len(questions), 'question')} without an image: {shown}{more}; "
            f"{look}; {advice}"
        )
    first = {question.image: question for question in reversed(several)}
    twice = [
        f"{place} {question.place}: {image!r} may be {' or '.join(found[image])}: keep one"
        for image, question in first.items()
    ]
    return problems, capped(twice, "images may be several files")
