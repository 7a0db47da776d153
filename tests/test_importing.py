"""Python's collector rests within the block, is as before after it, and never searches torch's objects."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.importing import quick_imports


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


def test_a_process_with_frozen_objects_ends_in_silence() -> None:
    code = "import gc, pipeline.tasks.registry; print(gc.get_freeze_count())"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 50_000, "torch alone has more objects"
    assert "leaked" not in done.stderr
