"""The base of every section of a recipe: plain validated data, frozen, unknown keys refused."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Validated settings. Each field's description gives meaning, unit and when to change it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
