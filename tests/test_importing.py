"""Python's collector rests within the block, and is as before after it, also after an error."""

from __future__ import annotations

import gc

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
