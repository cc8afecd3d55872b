"""The compiled library: where it lies, which instruction sets run here, which one is used.

torch is imported before the library is opened, so that both share one OpenMP runtime and its threads.
"""

import ctypes
import importlib.machinery
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from moesaic.errors import ConfigError, UnsupportedError

ISA_VARIABLE = "MOESAIC_ISA"
NONE = "none"
NOT_BUILT = "the library was not built: no C++ compiler was found at installation"

_INTERFACE = 5  # of csrc/moesaic.h
_TAKE_TWO_POINTERS = (
    "moesaic_mixture_forward",
    "moesaic_mixture_backward",
    "moesaic_quantised_forward",
)
_OUT_OF_MEMORY, _BAD_ROUTING = 3, 4
_ERRORS = {1: "the instruction set cannot run here", 2: "the dtype has no kernel"}


@dataclass(frozen=True)
class InstructionSet:
    """One set of kernels.

    Attributes:
        number: as the library counts.
        name: 'portable', 'avx512', ...
        refusal: why it cannot run here; None where it can.
    """

    number: int
    name: str
    refusal: str | None


def load_library() -> ctypes.CDLL | None:
    """Open the compiled library; None where this installation has none that works."""
    found = _open_library()
    return None if isinstance(found, str) else found


@cache
def _open_library() -> ctypes.CDLL | str:
    """Return the library, or why there is none."""
    assert torch is not None, "torch brings the OpenMP runtime"
    folder = Path(__file__).parent
    found = [
        path for suffix in importlib.machinery.EXTENSION_SUFFIXES if (path := folder / f"kernels{suffix}").is_file()
    ]
    if not found:
        return NOT_BUILT
    try:
        library = ctypes.CDLL(str(found[0]))
        interface = library.moesaic_interface()
    except (OSError, AttributeError) as error:  # AttributeError: one that is too old to tell
        return f"the library cannot be opened: {error}"
    if interface != _INTERFACE:
        return f"the library has interface {interface} and not {_INTERFACE}: it was built from other sources"
    library.moesaic_isa_name.restype = ctypes.c_char_p
    library.moesaic_isa_refusal.restype = ctypes.c_char_p
    for name in _TAKE_TWO_POINTERS:  # else ctypes would cut an address to 32 bits
        getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.moesaic_read.argtypes = [pointer, size, ctypes.c_int]
    library.moesaic_read.restype = ctypes.c_uint64
    library.moesaic_top_k.argtypes = [pointer, size, size, size, ctypes.c_int, pointer]
    library.moesaic_group_by_expert.argtypes = [pointer, pointer, size, size, size, *[pointer] * 4]
    return library


@cache
def list_instruction_sets() -> tuple[InstructionSet, ...]:
    """Return what the library was built for, slowest first; empty without a library."""
    library = load_library()
    if library is None:
        return ()
    texts = [
        (library.moesaic_isa_name(number).decode(), library.moesaic_isa_refusal(number))
        for number in range(library.moesaic_num_isas())
    ]
    return tuple(
        InstructionSet(number, name, None if refusal is None else refusal.decode())
        for number, (name, refusal) in enumerate(texts)
    )


def choose_instruction_set() -> InstructionSet | str:
    """Return the best instruction set, or the one that MOESAIC_ISA names, or why there is none.

    Raises:
        ConfigError: MOESAIC_ISA names nothing known.
        UnsupportedError: MOESAIC_ISA names one that cannot run here.
    """
    return _choose(os.environ.get(ISA_VARIABLE, ""))


@cache
def _choose(wanted: str) -> InstructionSet | str:
    sets = list_instruction_sets()
    if wanted == NONE:
        return f"{ISA_VARIABLE}={NONE} turns the compiled kernels off"
    if not wanted:
        runnable = [each for each in sets if each.refusal is None]
        return runnable[-1] if runnable else str(_open_library())  # the portable one runs wherever there is a library
    if not sets:
        raise UnsupportedError(
            f"{ISA_VARIABLE}={wanted}, but this installation has no compiled kernels",
            "install again with a C++ compiler",
        )
    named = [each for each in sets if each.name == wanted]
    if not named:
        raise ConfigError(
            f"{ISA_VARIABLE}={wanted} is no instruction set",
            f"use one of {', '.join(each.name for each in sets)}, {NONE}",
        )
    if named[0].refusal is not None:
        runnable_names = ", ".join(each.name for each in sets if each.refusal is None)
        raise UnsupportedError(
            f"{ISA_VARIABLE}={wanted} cannot run here: {named[0].refusal}", f"use one of {runnable_names}, {NONE}"
        )
    return named[0]


def check_status(status: int, doing: str) -> None:
    """Raise what a kernel's return value means.

    Raises:
        MemoryError: an allocation failed.
        UnsupportedError: the routing is no routing.
    """
    if status == _OUT_OF_MEMORY:
        raise MemoryError(f"out of memory while {doing}")
    if status == _BAD_ROUTING:
        raise UnsupportedError(
            f"{doing}: counts_E or the permutation does not fit the rows",
            "make it with group_by_expert, of tokens that ascend and ids in range",
        )
    assert status == 0, f"{_ERRORS[status]} while {doing}"
