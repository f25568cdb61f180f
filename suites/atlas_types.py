"""Which model types the atlas suites run on: a fixed sample, or with `-m slow` every one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from zlib import crc32

import pytest

from bench.atlas import Atlas, find_atlas, load_atlas, stored_versions
from bench.measure.reach import StoredReach, load_reach

INSTALLED = version("transformers")
STORED = INSTALLED in stored_versions()
needs_atlas = pytest.mark.skipif(
    not STORED,
    reason=f"no atlas of transformers {INSTALLED} is stored (there are "
    f"{', '.join(stored_versions())}): build one with `bench atlas`",
)
# Types with more adaptable modules than this take seconds each, and are never in the sample.
_SMALL = 300


@cache
def atlas_of(version: str) -> Atlas:
    """The stored atlas of a transformers, read once: it takes a fifth of a second."""
    return load_atlas(find_atlas(version))


def stored_atlas() -> Atlas:
    """The atlas of the installed transformers."""
    return atlas_of(INSTALLED)


@cache
def stored_reach() -> StoredReach:
    """What PEFT injected into every type of it."""
    return load_reach(find_atlas(INSTALLED))


def on_types(size: int, always: Sequence[str] = ()) -> Callable:
    """Run a test on `size` model types, `always` among them; with `-m slow` on all of them."""

    def sampled(test: Callable) -> Callable:
        test.sample = (size, tuple(always))
        return test

    return sampled


def parametrize_types(metafunc: pytest.Metafunc) -> None:
    """What a suite's `pytest_generate_tests` calls. The types outside the sample are only made
    into tests where they are asked for: collecting thousands takes seconds."""
    sample = getattr(metafunc.function, "sample", None)
    if sample is None:
        return
    everything = "slow" in metafunc.config.option.markexpr.replace("not slow", "")
    if not STORED:
        types = []
    elif everything:
        types = [pytest.param(t, marks=pytest.mark.slow) for t in sorted(stored_atlas().types)]
    else:
        types = sorted(_sample(*sample))
    metafunc.parametrize("model_type", types)


def _sample(size: int, always: Sequence[str]) -> set[str]:
    small = (
        name
        for name, entry in stored_atlas().types.items()
        if sum(p.count for p in entry.projections) < _SMALL
    )
    drawn = sorted(small, key=lambda t: crc32(t.encode()))
    return {*drawn[: size - len(always)], *always}
