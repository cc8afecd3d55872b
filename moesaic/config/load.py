"""From a recipe file and overrides to a checked `RunConfig`, and back to a file.

Every mistake becomes a `ConfigError` that names the key, what was found and what is accepted.
"""

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ValidationError

from moesaic.config.run import RunConfig
from moesaic.errors import ConfigError, nearest_hint
from moesaic.flush import replace_text

Tree = dict[str, Any]
# Where a field takes several types, the location of a mistake goes on with the type that was tried.
_UNION_MEMBERS = ("int", "list[int]")
SectionT = TypeVar("SectionT", bound=BaseModel)


def load_recipe(path: str | Path, overrides: Sequence[str] = (), expand: Callable[[Tree], Tree] = dict) -> RunConfig:
    """Read a recipe, apply `section.key=value` overrides, and check the whole.

    Args:
        path: a TOML file.
        overrides: later ones win; a value is read as TOML, or as a string where it is none.
        expand: fills in what presets and families stand for, before the check.

    Raises:
        ConfigError: the file cannot be read or parsed, or a key or value is not accepted.
    """
    tree = _read_toml(Path(path))
    for override in overrides:
        _apply_override(tree, override)
    return check_section(RunConfig, expand(tree), str(path))


def save_recipe(config: RunConfig, path: Path) -> None:
    """Write a resolved recipe, in one go; keys that are not set are left out."""
    replace_text(path, tomli_w.dumps(_without_none(config.model_dump())))


def check_section(
    kind: type[SectionT],
    tree: Tree,
    origin: str,
    missing_hint: str = "set it in the recipe, or with --set {key}=...",
) -> SectionT:
    """Build a section from plain data.

    Args:
        kind: the section.
        tree: its fields.
        origin: where they come from, for the error text.
        missing_hint: what to do about a key that is missing.

    Raises:
        ConfigError: the first mistake found, with its dotted key; the hint counts the others.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as failure:
        mistakes = failure.errors(include_url=False)
        # An unknown key often explains a missing one, so it is told first.
        mistakes.sort(key=lambda mistake: mistake["type"] != "extra_forbidden")
        raise _config_error(kind, mistakes, origin, missing_hint) from None


def _config_error(kind: type[BaseModel], mistakes: list[Any], origin: str, missing_hint: str) -> ConfigError:
    mistake = mistakes[0]
    key = ".".join(str(part) for part in mistake["loc"] if part not in _UNION_MEMBERS)
    if mistake["type"] == "extra_forbidden":
        text = f"{origin}: unknown key '{key}'"
        hint = _unknown_key_hint(kind, mistake["loc"])
    elif mistake["type"] == "missing":
        text, hint = f"{origin}: '{key}' is missing", missing_hint.format(key=key)
    elif mistake["type"] == "value_error":
        where = f"{origin}: {key}: " if key else f"{origin}: "
        text, hint = where + str(mistake["ctx"]["error"]), "change one of the named values"
    else:
        found = repr(mistake["input"])
        found = found if len(found) <= 60 else found[:57] + "..."
        text = f"{origin}: '{key}' is {found}"
        hint = mistake["msg"][0].lower() + mistake["msg"][1:]
    if len(mistakes) > 1:
        hint += f" ({len(mistakes) - 1} more after this one)"
    return ConfigError(text, hint)


def _unknown_key_hint(kind: type[BaseModel], location: Sequence[Any]) -> str:
    name, accepted = str(location[-1]), _accepted_keys(kind, location[:-1])
    if kind is RunConfig and len(location) == 1:
        for section in accepted:
            if name in _accepted_keys(kind, [section]):  # written without its section
                return f"did you mean '{section}.{name}'?"
    return nearest_hint(name, accepted)


def _accepted_keys(kind: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """Walk from a section along a location to the section that holds the key, and list its keys."""
    for part in location:
        if isinstance(part, int):
            continue
        annotation = kind.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        kind = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(kind.model_fields)


def _read_toml(path: Path) -> Tree:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"no recipe at '{path}'", "recipes/tiny.toml is one to start from") from None
    except (OSError, UnicodeDecodeError) as failure:
        raise ConfigError(f"cannot read recipe '{path}': {failure}", "give a TOML text file") from None
    except tomllib.TOMLDecodeError as failure:
        raise ConfigError(f"recipe '{path}' is no valid TOML: {failure}", "mend the named line") from None


def _apply_override(tree: Tree, override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"cannot read override '{override}'", "write --set section.key=value")
    for part in parts[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override '{override}': '{part}' is a value, not a section", "name one of its siblings")
    tree[parts[-1]] = _parse_value(text.strip())


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list | tuple) else value
