"""The base of every section of a recipe: plain validated data, frozen, unknown keys refused.

Strict: "5" or true is no number, as the recipe's author surely meant something else. A field that is a tuple says
`strict=False`, since TOML and JSON have lists only.
"""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Validated settings. Each field's description gives meaning, unit and when to change it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())
