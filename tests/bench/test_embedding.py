"""Table and head, whole and in parts, measured by ranks."""

from typing import Any

from moesaic.bench.embedding import time_embedding
from moesaic.comm.mesh import build_mesh
from tests.comm.pool import Pools

VOCABULARY, WIDTH = 2**15, 512


def _measure() -> dict[str, Any]:
    return time_embedding(build_mesh(2, 1, 1), 3, VOCABULARY, WIDTH)


def test_half_of_table_and_head_is_kept_when_two_ranks_split_them(pools: Pools) -> None:
    rows = pools(2).run(_measure)[0]["rows"]
    assert rows["whole"]["parameters"] == 2 * VOCABULARY * WIDTH
    assert rows["split"]["parameters"] == VOCABULARY * WIDTH
    assert rows["split"]["peak_bytes"] < rows["whole"]["peak_bytes"]
    assert all(row["ms"] > 0 for row in rows.values())
