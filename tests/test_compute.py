"""The number format that is chosen for a device, and what is said of one that the hardware imitates."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.errors import UserError
from pipeline.training import compute
from pipeline.training.compute import Compute, choose_compute


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    # Not what TEST_PRECISION made of it
    monkeypatch.setattr(compute, "computes_bf16", inspect.unwrap(compute.computes_bf16))


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_what_the_hardware_computes_in(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert choose_compute("auto") == Compute(torch.device("cpu"), expected)


def test_a_gpu_that_imitates_bf16_gets_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, expected in (((7, 5), "fp16"), ((8, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        assert choose_compute("auto").precision == expected


def test_imitated_bf16_is_done_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_bf16, ending in ((True, "CPU, bf16"), (False, "--precision auto)")):
        monkeypatch.setattr(compute, "computes_bf16", lambda _, has_bf16=has_bf16: has_bf16)
        assert choose_compute("bf16").precision == "bf16" and choose_compute("bf16").describe().endswith(
            ending
        )


def test_the_peak_of_memory_is_in_bytes_on_linux_and_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux counts in KiB, macOS in bytes: man getrusage."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrusage", lambda _who: SimpleNamespace(ru_maxrss=2048))
    for system, expected in (("linux", 2048 * 1024), ("darwin", 2048)):
        monkeypatch.setattr(sys, "platform", system)
        assert compute.peak_memory(torch.device("cpu")) == expected


def test_fp16_is_for_cuda() -> None:
    with pytest.raises(UserError, match=r"--precision fp16 .*found cpu.*bf16"):
        choose_compute("fp16")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_switch_of_the_test_suite_decides_what_auto_is_on_any_machine(precision: str) -> None:
    code = (
        "from pipeline.training import compute; import torch; print(compute.choose_compute('auto').precision)"
    )
    paths = [str(Path(__file__).parent / "startup"), str(Path(__file__).parents[1])]
    environment = os.environ | {
        "TEST_PRECISION": precision,
        "PYTHONPATH": os.pathsep.join(paths),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == (precision, 0), done.stderr
