"""What a misspelt name of a projection means."""

from __future__ import annotations

import re
from collections.abc import Collection

from bench.errors import all_nearest
from bench.models.roles import UNKNOWN, role_of

_COMMON = (
    "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "gate_proj", "up_proj",
    "down_proj", "gate_up_proj", "query", "key", "value", "query_key_value", "c_attn", "fc1", "fc2",
)  # fmt: skip
"""The names that most models have, and that people know by heart."""


def plainly(entry: str, leaves: Collection[str]) -> str:
    """The name that was meant where only its case, the sign between its words (`q.proj`, `q-proj`)
    or the length of the last one (`q_projection`) is another; "" where that is none of `leaves`,
    the names here, and tells no work."""
    parts = re.split(r"[.\s-]+", entry.lower().replace("projection", "proj"))
    ends = ("_".join(parts[-size:]) for size in (3, 2, 1) if len(parts) >= size)
    found = next((end for end in ends if end in leaves or role_of(end) != UNKNOWN), "")
    return "" if found == entry else found


def commonly(entry: str) -> str:
    """The common name that it is a slip of, where all that are as near do the same work: `o_projs`;
    "" where none is, or several are (`proj`)."""
    near = all_nearest(entry.rpartition(".")[2], _COMMON)
    return near[0] if len({role_of(name) for name in near}) == 1 else ""
