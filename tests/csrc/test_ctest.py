"""The kernels' own programs, built with AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "csrc"
COMPILER = os.environ.get("CXX", "c++")


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    # One thread unless a program asks for more, as other tests run beside.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"there is no C++ compiler '{COMPILER}'")
def test_programs_pass_and_the_sanitizers_are_silent_when_run(tmp_path: Path) -> None:
    configured = _run("cmake", "-S", SOURCE, "-B", tmp_path)
    if "Could NOT find OpenMP" in configured.stderr:
        pytest.skip("the compiler has no OpenMP")
    assert configured.returncode == 0, configured.stderr
    built = _run("cmake", "--build", tmp_path, "--parallel", "2")
    assert built.returncode == 0, built.stdout + built.stderr
    done = _run("ctest", "--test-dir", tmp_path, "--output-on-failure", "--no-tests=error")
    assert done.returncode == 0, done.stdout + done.stderr
