"""What a family is: data about names, traits and sizes. Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class ExpertNames:
    """Where a layer's experts stand in a foreign checkpoint; templates with {layer} and {expert}.

    Attributes:
        gate, up, down: one tensor an expert, as we write them: [F, D], [F, D], [D, F].
        fused_gate_up, fused_down: all experts in one tensor: [E, 2F, D] and [E, D, F].
    """

    gate: str
    up: str
    down: str
    fused_gate_up: str
    fused_down: str


@dataclass(frozen=True)
class FamilySpec:
    """One family.

    Attributes:
        model_type: the family's name in config.json.
        architecture: the class that transformers loads it with.
        traits: fields of `ModelConfig` that the family fixes.
        keys: our field -> keys it may have in config.json, the one we write first; beyond those all families
            share.
        defaults: our field -> value where config.json is silent.
        constants: keys always written to config.json.
        windows: how config.json tells sliding windows: not at all, by 'sliding_window' alone, behind
            'use_sliding_window', or by layer as well.
        tensors: our tensor name -> names it may have in a checkpoint, the one we write first.
        experts: names of the routed experts; None for a dense family.
        presets: published sizes, as fields of `ModelConfig`.
    """

    model_type: str
    architecture: str
    traits: Mapping[str, Any]
    keys: Mapping[str, tuple[str, ...]]
    tensors: Mapping[str, tuple[str, ...]]
    presets: Mapping[str, Mapping[str, Any]]
    experts: ExpertNames | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    windows: Literal["none", "plain", "flagged", "layered"] = "none"
