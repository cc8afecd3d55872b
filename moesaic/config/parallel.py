"""How the ranks of a run share the work."""

from typing import Literal

from pydantic import Field

from moesaic.config.section import Section


class ParallelConfig(Section):
    """Degrees of parallelism; those of data and tensor multiply to the number of ranks."""

    expert: int | None = Field(
        None,
        gt=0,
        description="ranks that the experts of a layer are spread over; each takes tokens of all of them. Divides the "
        "number of ranks and of experts; unset: the most that does",
    )
    all_to_all: Literal["auto", "flat", "hierarchical"] = Field(
        "auto",
        description="how tokens travel to experts on other nodes: each rank to each, or inside a node first and then "
        "from node to node; auto: whichever is faster when the run begins. Equal results",
    )
    data_replicate: int | None = Field(
        None,
        gt=0,
        description="groups of ranks that each keep the parameters besides the experts; unset: what is left of the "
        "ranks",
    )
    data_shard: int = Field(
        1,
        gt=0,
        description="ranks of a group, which keep a share each of its parameters, gradients and moments and gather a "
        "layer when it is computed: less memory, more traffic",
    )
    tensor: int = Field(
        1,
        gt=0,
        description="ranks that share the heads of attention and the widths of dense and shared MLPs, and compute them "
        "for the sequences of all of them; each keeps its part of those parameters. Divides heads, key/value heads and "
        "widths; worth it where neighbours talk fast and attention is too large for each",
    )
    embedding: Literal["whole", "split"] = Field(
        "whole",
        description="whether every rank keeps the embedding table and the head as other parameters, or columns of the "
        "one and rows of the other, for the tokens of all ranks: less memory, and no gradient of so large a parameter "
        "to sum. For models whose head is not their table",
    )
    bucket_bytes: int = Field(
        2**25,
        ge=2**10,
        description="gradients are summed over ranks in messages of about so many bytes; "
        "`moesaic bench comm` measures which size is best",
    )
    timeout_s: int = Field(
        600, gt=0, description="seconds after which a rank that waits for another takes it for dead and ends"
    )
