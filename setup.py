"""Builds the kernels of `csrc/` where there is a C++ compiler; without one the package installs and computes in torch.

Each instruction set is a translation unit with flags of its own. One that the compiler does not know is left out, and
the library says so when asked.
"""

import platform

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

_AVX512 = ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"]
# Object name: (source, flags, macro that tells the rest it is missing).
_INSTRUCTION_SETS = {
    "avx512": ("csrc/avx512/kernels.cpp", _AVX512, "MOESAIC_WITHOUT_AVX512"),
    "avx512_bf16": ("csrc/avx512/kernels.cpp", [*_AVX512, "-mavx512bf16"], "MOESAIC_WITHOUT_AVX512_BF16"),
    "amx": (
        "csrc/amx/kernels.cpp",
        [*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mamx-int8"],
        "MOESAIC_WITHOUT_AMX",
    ),
}
_FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden"]


class BuildKernels(build_ext):
    """Compiles each instruction set with its own flags; leaves out what does not compile."""

    def build_extension(self, ext: Extension) -> None:
        openmp = ["-fopenmp"] if self._compiles_openmp() else []
        objects, macros = [], []
        for name, (source, flags, missing) in _INSTRUCTION_SETS.items():
            try:
                if platform.machine().lower() not in ("x86_64", "amd64"):
                    raise CompileError("not an x86-64")
                objects += self._compile(source, name, [*flags, *openmp])
            except CompileError as error:
                self.warn(f"kernels for {name} are left out: {error}")
                macros.append(f"-D{missing}")
        objects += self._compile("csrc/portable/kernels.cpp", "portable", openmp)
        objects += self._compile("csrc/routing.cpp", "routing", openmp)
        objects += self._compile("csrc/read.cpp", "read", openmp)
        objects += self._compile("csrc/cpu.cpp", "cpu", [])
        objects += self._compile("csrc/moesaic.cpp", "moesaic", macros)
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), extra_postargs=openmp, target_lang="c++"
        )

    def _compile(self, source: str, name: str, flags: list[str]) -> list[str]:
        return self.compiler.compile([source], output_dir=f"{self.build_temp}/{name}", extra_postargs=[*_FLAGS, *flags])

    def _compiles_openmp(self) -> bool:
        try:
            self._compile("csrc/portable/kernels.cpp", "openmp", ["-fopenmp"])
        except CompileError:
            return False
        return True


setup(
    ext_modules=[Extension("moesaic.ops.cpu.kernels", sources=["csrc/moesaic.cpp"], language="c++", optional=True)],
    cmdclass={"build_ext": BuildKernels},
)
