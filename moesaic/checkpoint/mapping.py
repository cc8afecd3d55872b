"""Which stored tensors make up each of our parameters.

A parameter comes from one stored tensor, or, for stacked experts, from one tensor for each expert and
projection. The plan is made from names and shapes alone, and every disagreement is found before anything is
read.
"""

from dataclasses import dataclass

from moesaic.checkpoint.folder import config_file
from moesaic.checkpoint.tensors import FLOATS, TensorFolder
from moesaic.errors import CheckpointError, UnsupportedError
from moesaic.models.names import COMPUTED
from moesaic.models.spec import FamilySpec

Shape = tuple[int, ...]
_EMBEDDING, _HEAD = "decoder.embedding.weight", "head.weight"
# What a linear map of 8 bits has in place of its weight, by the last part of the name, and its dtype.
_QUANTISED = {"blocks": "I8", "scales": "F32"}


@dataclass(frozen=True)
class Source:
    """Where a parameter comes from.

    Attributes:
        names: stored names: one; or for stacked experts, for each expert its parts in order.
        parts: stored tensors for each expert, concatenated; None: the one tensor is the parameter.
    """

    names: list[str]
    parts: int | None = None


def plan_sources(parameters: dict[str, Shape], family: FamilySpec | None, stored: TensorFolder) -> dict[str, Source]:
    """Find the source of every parameter.

    Args:
        parameters: our names and shapes.
        family: whose names are stored; None: our own.
        stored: the folder.

    Raises:
        CheckpointError: tensors are missing, have another shape or dtype, or are no part of the model; the text
            names the first and counts all.
        UnsupportedError: the family has no name for a parameter.
    """
    # Where the head is the embedding table, the table may be stored under either name, or under both.
    tied = [] if _HEAD in parameters else source_choices(_HEAD, (), family)
    known = {each for choice in tied for each in choice.names}
    sources, missing, wrong = {}, [], []
    for name, shape in parameters.items():
        choices = source_choices(name, shape, family) + (tied if name == _EMBEDDING else [])
        found = next((choice for choice in choices if all(each in stored.stored for each in choice.names)), None)
        known |= set((found or choices[0]).names)
        if found is None:
            absent = [each for each in choices[0].names if each not in stored.stored]
            missing.append(absent[0])
            continue
        sources[name] = found
        expected, fixed = _stored_shape(shape, found), quantised_dtype(name)
        dtypes = list(FLOATS) if fixed is None else [fixed]
        for each in found.names:
            entry = stored.stored[each]
            if entry.shape != expected:
                wrong.append(f"'{each}' has shape {list(entry.shape)}, expected {list(expected)}")
            elif entry.dtype not in dtypes:
                wrong.append(f"'{each}' has dtype {entry.dtype}, expected one of {', '.join(dtypes)}")
    strange = [each for each in stored.stored if each not in known and not each.endswith(COMPUTED)]
    problems = [f"'{each}' is missing" for each in missing] + wrong
    problems += [f"'{each}' is stored but no part of the model" for each in strange]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        config = config_file(stored.folder).name
        raise CheckpointError(
            f"'{stored.folder}' does not fit its {config}: {problems[0]}{more}",
            f"{config} and weights belong to different models, or a file is missing or was edited",
        )
    return sources


def source_choices(name: str, shape: Shape, family: FamilySpec | None) -> list[Source]:
    """List the ways a parameter may be stored, the one that we write first."""
    if family is None:
        return [Source([name])]
    if quantised_dtype(name) is not None:
        stem, _, last = name.rpartition(".")
        floats = source_choices(f"{stem}.weight", shape, family)
        return [Source([each.names[0].removesuffix("weight") + last]) for each in floats]
    template, layer = _as_template(name)
    if template.endswith((".moe.experts.gate_up", ".moe.experts.down")):
        assert family.experts is not None, "a family with MoE layers names its experts"
        is_down = template.endswith("down")
        each = (family.experts.down,) if is_down else (family.experts.gate, family.experts.up)
        fused = family.experts.fused_down if is_down else family.experts.fused_gate_up
        names = [part.format(layer=layer, expert=expert) for expert in range(shape[0]) for part in each]
        return [Source(names, parts=len(each)), Source([fused.format(layer=layer)])]
    if template not in family.tensors:
        raise UnsupportedError(
            f"family '{family.model_type}' has no name for '{name}'",
            "config.json asks for a part it cannot have",
        )
    return [Source([choice.format(layer=layer)]) for choice in family.tensors[template]]


def quantised_dtype(name: str) -> str | None:
    """Return the dtype in which a part of a linear map of 8 bits is stored and kept; None: it is none."""
    return _QUANTISED.get(name.rpartition(".")[2])


def _as_template(name: str) -> tuple[str, int | None]:
    parts = name.split(".")
    if parts[:2] != ["decoder", "layers"]:
        return name, None
    return ".".join(["decoder", "layers", "{layer}", *parts[3:]]), int(parts[2])


def _stored_shape(shape: Shape, source: Source) -> Shape:
    return shape if source.parts is None else (shape[1] // source.parts, shape[2])
