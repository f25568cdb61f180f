"""Private names of the libraries: all are where they were seen, and a move is told in words."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bench import compat
from bench.compat import PRIVATE, Private, moved, patched, private
from bench.errors import BenchError


@pytest.mark.parametrize("name", PRIVATE)
def test_each_is_where_it_was_seen(name: str) -> None:
    extra = {"trl": "trainers", "ray": "cluster"}.get(PRIVATE[name].distribution)
    if extra is not None:
        reason = f"needs the extra [{extra}]"
        pytest.importorskip(PRIVATE[name].distribution, reason=reason)
    PRIVATE[name].find()
    assert moved(PRIVATE[name].distribution) == ()


def test_a_release_that_moved_a_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {
        "a": Private("bench.units:_gone", "torch 2.13.0", "what a is for"),
        "b": Private("no_such_module:b", "torch 2.13.0", "what b is for"),
        "c": Private("bench.units:one_line", "torch 2.13.0", "what c is for"),
    }
    monkeypatch.setattr(compat, "PRIVATE", gone)
    moved.cache_clear()
    try:
        with pytest.raises(BenchError) as error:
            private("a")
    finally:
        moved.cache_clear()
    for said in ("torch 2.", "pip install 'torch==2.13.0'", "bench.units:_gone (last seen in torch",
                 "what a is for", "what b is for"):  # fmt: skip
        assert said in str(error.value)
    assert "what c is for" not in str(error.value)


def test_patches_are_taken_back() -> None:
    class Base:
        inherited = 1
        kept = staticmethod(lambda: 2)

    class Owner(Base):
        own = staticmethod(lambda: 3)

    def fails() -> None:
        with patched((Owner, "own", 4), (Owner, "inherited", 5), (Owner, "own", 6)):
            assert (Owner.own, Owner.inherited) == (6, 5)
            raise KeyError

    before = vars(Owner).copy()
    with pytest.raises(KeyError):
        fails()
    assert vars(Owner).get("own") is before["own"]
    assert "inherited" not in vars(Owner)
    assert Owner.own() == 3


def test_a_module_is_patched_too() -> None:
    owner = SimpleNamespace(width=1)
    with patched((owner, "width", 2)):
        assert owner.width == 2
    assert owner.width == 1
