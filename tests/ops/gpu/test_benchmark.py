"""`benchmarks/gpu.py` where there is no device: it checks, and says what it cannot do."""

import json
from pathlib import Path

import pytest

from tests.ops.gpu.device import needs_triton, run_alone

SCRIPT = "benchmarks/gpu.py"
# Nothing is within these limits.
WRONG = """
import sys; sys.path.insert(0, "benchmarks")
import gpu, gpu_check
gpu_check.TOLERANCES = dict.fromkeys(gpu_check.TOLERANCES, -1.0)
gpu_check.CHECKED_INTERPRETED = gpu_check.CHECKED_INTERPRETED[1:]
sys.exit(gpu.run_all(True, 2, None))
"""


@needs_triton
@pytest.mark.slow
def test_benchmark_checks_every_kernel_when_interpreted(tmp_path: Path) -> None:
    result = run_alone("-W", "error", SCRIPT, "--interpret", "--out", str(tmp_path / "gpu.json"))
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "gpu.json").read_text())
    summary = json.loads(result.stdout)
    assert summary == {"benchmark": "gpu", "checks": len(written["checks"]), "result": str(tmp_path / "gpu.json")}
    checked = {(check["op"], check["dtype"].removeprefix("torch.")) for check in written["checks"]}
    operations = "top_k", "group_by_expert", "permute", "combine", "swiglu", "mix_experts"
    assert checked == {(op, dtype) for op in operations for dtype in ("float32", "float16", "bfloat16")}
    assert written["machine"]["triton"]


@needs_triton
@pytest.mark.slow
def test_benchmark_exits_1_when_a_kernel_is_wrong() -> None:
    result = run_alone("-c", WRONG, TRITON_INTERPRET="1")
    assert result.returncode == 1
    assert "error: 18 of 18 checks of the kernels failed\ntop_k in torch.float32 at Shape(D=16" in result.stderr
    assert not result.stdout


@needs_triton
def test_benchmark_exits_2_with_two_lines_when_there_is_no_device() -> None:
    result = run_alone(SCRIPT)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "error: cannot check the kernels: no CUDA device",
        " hint: run it where torch sees a GPU, or with --interpret",
    ]
