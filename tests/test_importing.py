"""Python's collector rests within the block, is as before after it, and never searches torch's objects."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.importing import quick_imports

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("was_on", [True, False])
def test_the_collector_rests_within_the_block_alone(was_on: bool) -> None:
    (gc.enable if was_on else gc.disable)()
    try:
        with pytest.raises(ImportError), quick_imports():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() is was_on
    finally:
        gc.enable()


def test_a_process_freezes_its_objects_reads_model_files_once_and_ends_in_silence() -> None:
    """Half of transformers' model folders would be read again: its cache holds 128 of them."""
    code = (
        "import gc, os, pipeline.tasks.registry, transformers, transformers.utils.import_utils as utils;"
        "folders = [path for path, _, files in os.walk(transformers.__path__[0] + '/models')"
        " if '__init__.py' in files];"
        "read = utils.create_import_structure_from_path.__wrapped__.cache_info().misses;"
        "print(gc.get_freeze_count(), read, len(folders))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    frozen, read, folders = map(int, done.stdout.split())
    assert frozen > 50_000, "torch alone has more objects"
    assert read < 1.5 * folders
    assert "leaked" not in done.stderr
