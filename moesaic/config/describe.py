"""The reference of all recipe keys, as Markdown, from the settings themselves.

`python -m moesaic.config.describe > docs/recipe.md` writes it; a test fails when the file is stale.
"""

import json
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from moesaic.config.run import RunConfig

_HEAD = """# Recipe keys

A recipe is a TOML file with the sections below. Unknown keys are errors. Any key can be set on the command line with
`--set section.key=value`. `model.preset` fills the model section with a published size; what stands beside it wins.

This page is generated: `python -m moesaic.config.describe > docs/recipe.md`.
"""


def describe_recipe() -> str:
    """Return the reference: a table for each section, with key, type, default and meaning."""
    parts = [_HEAD]
    for name, field in RunConfig.model_fields.items():
        section = field.annotation
        assert isinstance(section, type), "a recipe is made of sections"
        parts.append(_describe_section(f"[{name}]", section))
        for nested in _nested_sections(section):
            parts.append(_describe_section(nested.__name__, nested))
    return "\n".join(parts)


def _describe_section(title: str, section: type[BaseModel]) -> str:
    summary = (section.__doc__ or "").strip().splitlines()[0]
    rows = [
        f"| `{key}` | {_type_name(field)} | {_default(field)} | {field.description} |"
        for key, field in section.model_fields.items()
    ]
    table = "\n".join(["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows])
    return f"## {title}\n\n{summary}\n\n{table}\n"


def _nested_sections(section: type[BaseModel]) -> list[type[BaseModel]]:
    found = [inner for field in section.model_fields.values() for inner in get_args(field.annotation)]
    return [inner for inner in found if isinstance(inner, type) and issubclass(inner, BaseModel)]


def _type_name(field: FieldInfo) -> str:
    return _name(field.annotation).replace("|", "\\|")


def _name(annotation: Any) -> str:
    arguments = get_args(annotation)
    if not arguments:
        return "unset" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))
    if all(isinstance(argument, str | int) for argument in arguments):
        return " | ".join(json.dumps(argument) for argument in arguments)
    names = [_name(argument) for argument in arguments if argument is not type(None)]
    origin = getattr(annotation, "__origin__", None)
    return f"{origin.__name__} of {', '.join(names)}" if origin in (list, tuple) else " | ".join(names)


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    return "unset" if field.default is None else f"`{json.dumps(field.default)}`"


if __name__ == "__main__":
    print(describe_recipe(), end="")
