"""Imports go down only, siblings of a floor do not know each other, and there is no way round in a circle."""

import ast

from tests.architecture.source import foreign_imports_of, imports_of, modules

# From the top; what stands on one floor are siblings.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"serve"},
    {"bench"},
    {"train", "infer"},
    {"parallel", "checkpoint", "data", "optim", "integrations"},
    {"models"},
    {"nn"},
    {"ops", "memory", "comm", "tokenizer"},
    {"hw", "config", "telemetry"},
    {"shapes", "units", "flush"},
    {"errors"},
]
HEIGHT = {room: len(FLOORS) - floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# What each room may import from others. A room that is not listed has the standard library alone.
FOREIGN = {
    "cli": {"rich", "typer"},
    "train": {"rich", "torch"},
    "infer": {"torch"},
    "bench": {"deepspeed", "gguf", "llama_cpp", "matplotlib", "numpy", "safetensors", "torch", "transformers"},
    "checkpoint": {"huggingface_hub", "numpy", "safetensors", "torch"},
    "data": {"datasets", "huggingface_hub", "numpy", "torch"},
    "optim": {"torch"},
    "integrations": {"torch", "transformers"},
    "parallel": {"torch"},
    "comm": {"torch"},
    "models": {"torch"},
    "nn": {"torch"},
    "memory": {"numpy", "torch"},
    "ops": {"torch", "triton"},
    "tokenizer": {"jinja2", "tokenizers"},
    "hw": {"psutil", "torch"},
    "config": {"pydantic", "pydantic_core", "tomli_w"},
    "telemetry": {"jinja2", "matplotlib", "rich"},
    "testing": {"torch"},
}
# Helpers for tests and benchmarks: the side room sees the library, and nothing of the library sees it.
SIDE_ROOM = "testing"


def _room(name: str) -> str:
    """Return the room of a module: the folder or file below the package; '' for the package itself."""
    return name.split(".")[1] if "." in name else ""


def _is_allowed(importer: str, imported: str) -> bool:
    mine, theirs = _room(importer), _room(imported)
    if mine == theirs or theirs == "":
        return True
    if mine == "":
        return theirs == "errors"
    if SIDE_ROOM in (mine, theirs):
        return mine == SIDE_ROOM
    return HEIGHT[mine] > HEIGHT[theirs]


def test_every_module_stands_on_a_floor_when_added() -> None:
    strange = [name for name in modules() if _room(name) not in {*HEIGHT, SIDE_ROOM, ""}]
    assert not strange, "name its room in FLOORS"


def test_imports_go_down_when_a_module_uses_another() -> None:
    upward = [
        f"{name} imports {other}"
        for name, module in modules().items()
        for other in sorted(imports_of(module.tree))
        if not _is_allowed(name, other)
    ]
    assert not upward


def test_packages_of_others_are_those_of_the_room_when_imported() -> None:
    strange = [
        f"{name} imports {package}"
        for name, module in modules().items()
        for package in sorted(foreign_imports_of(module.tree) - FOREIGN.get(_room(name), set()))
    ]
    assert not strange, "a room's packages are listed in FOREIGN"


def test_our_own_imports_stand_at_the_top_when_outside_the_command_line() -> None:
    hidden = [
        f"{name}: {node.name} imports {other}"
        for name, module in modules().items()
        # Commands import what they need when they run, so that --help is quick.
        if _room(name) != "cli"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for other in sorted(imports_of(node))
    ]
    assert not hidden


def test_modules_form_no_cycle_when_they_import_each_other() -> None:
    graph = {name: imports_of(module.tree) - {name} for name, module in modules().items()}
    while leaves := [name for name, below in graph.items() if not below & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"each of these imports another of them: {sorted(graph)}"
