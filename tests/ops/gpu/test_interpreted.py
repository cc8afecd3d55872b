"""What a machine without a device can tell of the kernels, each in a process of its own: see `device.py`."""

from pathlib import Path

import pytest

from tests.ops.gpu.device import KERNEL_TESTS, ROOT, needs_triton, run_alone


@needs_triton
@pytest.mark.slow
def test_kernels_pass_their_tests_when_interpreted() -> None:
    files = [f"tests/ops/gpu/{name}" for name in KERNEL_TESTS]
    result = run_alone("-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *files, TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert "skipped" not in result.stdout


@needs_triton
@pytest.mark.slow
def test_kernels_compile_for_real_devices_when_there_is_none(tmp_path: Path) -> None:
    result = run_alone("-m", "tests.ops.gpu.compile_kernels", TRITON_CACHE_DIR=str(tmp_path))
    assert result.returncode == 0, result.stderr[-6000:]
    sources = "".join((ROOT / "moesaic/ops/gpu" / name).read_text() for name in ("route.py", "permute.py", "swiglu.py"))
    assert len(result.stdout.split()) == sources.count("@triton.jit")


def test_triton_is_not_imported_when_operations_are() -> None:
    modules = "moesaic.ops.mixture, moesaic.ops.route, moesaic.ops.gpu.refusal"
    result = run_alone("-c", f"import sys, {modules}; print('triton' in sys.modules)")
    assert result.stdout.strip() == "False", result.stderr
