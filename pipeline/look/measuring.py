"""Measure many images on all cores with a progress bar, except those in the store.

Results survive an interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from pipeline.data.intensity import Intensity
from pipeline.errors import Interrupted
from pipeline.look.fact_store import FactStore
from pipeline.look.image_facts import ImageFacts, image_facts

AT_ONCE = 256  # images between two writes; an interruption loses at most these


def measure(paths: Sequence[Path], store: FactStore, intensity: Intensity | None) -> dict[Path, ImageFacts]:
    """Return the facts of all `paths`, without their grey copies, which stay in the store.

    Raises:
        Interrupted: Ctrl-C; facts measured so far are stored.
    """
    paths = list(dict.fromkeys(paths))
    found = store.known(paths)
    new = [path for path in paths if path not in found]
    try:
        with (
            ThreadPoolExecutor() as pool,
            tqdm(total=len(new), desc="looking at images", unit="img", leave=False, disable=not new) as bar,
        ):
            for start in range(0, len(new), AT_ONCE):
                part = new[start : start + AT_ONCE]
                # decoders release the GIL
                facts = list(pool.map(lambda path: image_facts(path, intensity), part))
                store.add(facts)
                found |= {path: replace(one, grey=b"") for path, one in zip(part, facts, strict=True)}
                bar.update(len(part))
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped after {len(found):,} of {len(paths):,} images; they are stored in {store.path}, and "
            "the same command continues"
        ) from None
    return found
