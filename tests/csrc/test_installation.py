"""Installing: without a compiler, with one that knows few instructions, and what is packed."""

import ctypes
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = os.environ.get("CXX", "c++")
pytest.importorskip("setuptools", minversion="77")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What `setup.py` reads, in a folder of its own."""
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "moesaic/ops/cpu").mkdir(parents=True)
    for package in ("moesaic", "moesaic/ops", "moesaic/ops/cpu"):
        (folder / package / "__init__.py").touch()
    return folder


def _setup(clone: Path, *arguments: str, compiler: Path | str = COMPILER) -> str:
    environment = os.environ | {"CC": str(compiler), "CXX": str(compiler)}
    command = [sys.executable, "setup.py", *arguments]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def _libraries(clone: Path) -> list[Path]:
    return list((clone / "moesaic/ops/cpu").glob("kernels*.so"))


def test_installation_goes_on_without_kernels_when_there_is_no_compiler(clone: Path) -> None:
    told = _setup(clone, "build_ext", "--inplace", compiler="/no/such/compiler")
    assert 'building extension "moesaic.ops.cpu.kernels" failed' in told
    assert _libraries(clone) == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"there is no C++ compiler '{COMPILER}'")
def test_instruction_set_is_left_out_with_a_reason_when_the_compiler_does_not_know_it(
    clone: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old-compiler"
    old.write_text(
        f'#!/bin/sh\ncase "$*" in *-mavx512f*) echo "unknown option" >&2; exit 1;; esac\nexec {COMPILER} "$@"\n'
    )
    old.chmod(0o755)
    told = _setup(clone, "build_ext", "--inplace", compiler=old)
    assert "kernels for amx are left out" in told
    (built,) = _libraries(clone)
    library = ctypes.CDLL(str(built))
    library.moesaic_isa_refusal.restype = ctypes.c_char_p
    assert library.moesaic_num_isas() == 4
    assert library.moesaic_isa_refusal(0) is None
    for number in (1, 2, 3):
        assert library.moesaic_isa_refusal(number) == b"the compiler of this installation could not build it"


def test_archive_holds_the_kernels_when_packed(clone: Path) -> None:
    _setup(clone, "sdist", "--dist-dir", "packed")
    (archive,) = (clone / "packed").glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert names >= {"setup.py", *sources}
