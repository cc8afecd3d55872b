"""The package's source files as syntax trees, for the checks of this room."""

import ast
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import moesaic

ROOT = Path(moesaic.__file__).parent


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    name: str
    path: Path
    tree: ast.Module


@cache
def modules() -> dict[str, Module]:
    """Return every module of the package by its dotted name; a package stands under its own name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ["moesaic", *path.relative_to(ROOT).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
    return found


def imports_of(tree: ast.AST) -> set[str]:
    """List the package's modules that a tree imports, anywhere in it, apart from TYPE_CHECKING blocks."""
    return {name for name in _imported(tree) if name.split(".")[0] == "moesaic"}


def foreign_imports_of(tree: ast.AST) -> set[str]:
    """List the packages of others, beyond the standard library, that a tree imports; as `imports_of`."""
    roots = {name.split(".")[0] for name in _imported(tree)}
    return roots - {"moesaic"} - sys.stdlib_module_names


def _imported(tree: ast.AST) -> set[str]:
    skipped = {id(inner) for node in ast.walk(tree) if _is_for_types(node) for inner in ast.walk(node)}
    nodes = [node for node in ast.walk(tree) if id(node) not in skipped]
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            # `from package import module` imports the module too.
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & modules().keys() or {node.module or ""}
    return found


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
