"""Names: of files, of tensors by their shape letters, and of other projects where they belong."""

import ast
import re
from collections.abc import Iterator

from moesaic.models.table import FAMILIES
from moesaic.shapes import LETTERS
from tests.architecture.source import ROOT, modules

EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "base", "v2"}
# The letters of a shape, counts among them: token_ids_TK, hidden_N2F.
SHAPE_SUFFIX = re.compile(r"[a-z0-9]_([A-Z0-9]{1,4})$")
FOREIGN_KEY = re.compile(r"\b([qkvo]_proj|(gate|up|down)_proj|gate_up_proj|block_sparse_moe|self_attn|lm_head)\b")


def _identifiers(tree: ast.AST) -> set[str]:
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    return names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def _public_definitions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Give the public functions, classes and methods, but nothing within a function or a private class."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            yield child
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from _public_definitions(child)


def test_files_are_named_for_what_they_hold_when_added() -> None:
    assert not [name for name in modules() if EMPTY_NAMES & set(name.split("."))]


def test_shape_letters_are_those_of_the_legend_when_a_name_ends_in_them() -> None:
    strange = []
    for module in modules().values():
        found = {name: match[1] for name in _identifiers(module.tree) if (match := SHAPE_SUFFIX.search(name))}
        strange += [
            f"{module.name}: {name}"
            for name, letters in found.items()
            if set(re.sub(r"\d", "", letters)) - LETTERS.keys()
        ]
    assert not strange, "use the letters of moesaic/shapes.py"


def test_modules_and_public_definitions_have_docstrings_when_read() -> None:
    silent = [name for name, module in modules().items() if not ast.get_docstring(module.tree)]
    silent += [
        f"{module.name}: {node.name}"
        for module in modules().values()
        for node in _public_definitions(module.tree)
        if not ast.get_docstring(node)
    ]
    assert not silent


def test_foreign_keys_stand_in_names_files_alone_when_written() -> None:
    strange = [
        f"{module.name}: {node.value}"
        for module in modules().values()
        if not (module.path.is_relative_to(ROOT / "models") and module.path.name == "names.py")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and FOREIGN_KEY.search(node.value)
    ]
    assert not strange


def test_names_files_hold_the_foreign_keys_when_a_family_has_tensors() -> None:
    for family in FAMILIES.values():
        assert any(FOREIGN_KEY.search(name) for names in family.tensors.values() for name in names)
