"""Private names of the libraries: all are where they were seen, and a move is told in words."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import compat
from bench.cli import main
from bench.compat import PRIVATE, Private, instead_of, moved, patched, private
from bench.errors import BenchError
from bench.models.architectures import load_model


@pytest.mark.parametrize("name", PRIVATE)
def test_each_is_where_it_was_seen(name: str) -> None:
    extra = {"trl": "trainers", "ray": "cluster"}.get(PRIVATE[name].distribution)
    if extra is not None:
        reason = f"needs the extra [{extra}]"
        pytest.importorskip(PRIVATE[name].distribution, reason=reason)
    if PRIVATE[name].where.startswith(":"):
        pytest.skip("of an object that only a run has: the plugin's own tests ask it")
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


def test_every_private_name_of_a_library_is_listed() -> None:
    """In bench/ nothing that begins with one underscore is asked of another object than `self`,
    unless it is of this project, of PRIVATE, or a kernel's name."""
    import torch

    listed = {part for entry in PRIVATE.values() for part in re.split(r"[:.]", entry.where)}
    files = [*Path(compat.__file__).parent.rglob("*.py")]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    ours = {node.name for _, node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    named = [(path, node) for path, node in nodes if isinstance(node, ast.Attribute)]
    of_self = [node for _, node in named if getattr(node.value, "id", "") in ("self", "cls")]
    ours |= {node.attr for node in of_self if isinstance(node.ctx, ast.Store)}
    asked = {(path, node.attr) for path, node in named if not hasattr(torch.ops.aten, node.attr)}
    for path, node in nodes:
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
            asked.add((path, str(getattr(node.args[1], "value", ""))))
    theirs = ours | listed | {"_exit", "_getframe"}  # the standard library documents both
    found = {f"{path.name}: {name}" for path, name in asked if re.match(r"_[a-zA-Z]", name)
             and name not in theirs and path.name != "compat.py"}  # fmt: skip
    assert found == set()


def test_a_command_says_what_moved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where a name is taken from an instance; another error keeps its traceback."""

    def lacks(name: str) -> Any:
        def fails(*_: object) -> None:
            getattr(SimpleNamespace(), name)

        return fails

    monkeypatch.setattr("bench.models.architectures.read_table", lacks("_is_view"))
    words = ["targets", "opt-125m", "--target-modules", "q_proj"]
    load_model.cache_clear()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "lacks what is used of it here" in said
    assert "torch:Tensor._is_view (last seen in torch" in said
    monkeypatch.setattr("bench.models.architectures.read_table", lacks("_of_nobody"))
    load_model.cache_clear()
    with pytest.raises(AttributeError, match="_of_nobody"):
        main(words)


class Without:
    """A module, or an object within it, less one attribute somewhere inside."""

    def __init__(self, held: Any, path: str) -> None:
        self.held, self.path = held, path

    def __getattr__(self, name: str) -> Any:
        first, _, rest = self.path.partition(".")
        if name != first:
            return getattr(self.held, name)
        if not rest:
            raise AttributeError(name)
        return Without(getattr(self.held, name), rest)


@pytest.mark.parametrize("name", PRIVATE)
def test_without_it_what_moved_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attribute is taken away: the line names it, the release it was seen in, and what goes
    without it."""
    entry = PRIVATE[name]
    module, _, path = entry.where.partition(":")
    held = None
    moved(entry.distribution)  # what is imported late is imported before anything is lacking
    if module:
        pytest.importorskip(module)
        monkeypatch.setitem(sys.modules, module, Without(sys.modules[module], path))
    else:
        held = Without(SimpleNamespace(), path.rpartition(".")[0])
    moved.cache_clear()
    try:
        with pytest.raises(BenchError) as error:
            private(name, held)
    finally:
        moved.cache_clear()
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f"{entry.distribution} ")
    assert f"pip install '{entry.seen.replace(' ', '==')}'" in lines[0]
    assert f"  {entry.where} (last seen in {entry.seen}): {entry.use}" in lines[1:]


def test_what_is_put_in_the_place_of_a_private_name_must_be_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch_adam = pytest.importorskip("torch.optim.adam")
    owner, name, value = instead_of("fused optimizers", 1)
    assert (owner, name, value) == (torch_adam, "_device_dtype_check_for_fused", 1)
    monkeypatch.delattr(torch_adam, name)
    moved.cache_clear()
    try:
        with pytest.raises(BenchError, match="a fused step is traced on meta"):
            instead_of("fused optimizers", 1)
    finally:
        moved.cache_clear()


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


def test_what_a_library_compiles_where_it_is_imported_stays_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    text = (
        "import torch\n\ndef written(): return 1\n\none = torch.compile(written, dynamic=False)\n"
        "two = torch.compile(dynamic=False)(written)\n"
    )
    (tmp_path / "compiles_itself.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    before, finders = torch.compile, list(sys.meta_path)
    sys.meta_path.insert(0, compat._Uncompiled("compiles_itself"))
    made = importlib.import_module("compiles_itself")
    assert made.one is made.two is made.written
    assert torch.compile is before
    assert sys.meta_path == finders
    sys.meta_path.insert(0, compat._Uncompiled("is_not_installed"))
    with pytest.raises(ModuleNotFoundError, match="is_not_installed"):
        importlib.import_module("is_not_installed")
    assert sys.meta_path == finders


def test_a_command_leaves_the_compiler_out() -> None:
    """In a process of its own: what bitsandbytes wraps is there, and is not compiled."""
    code = (
        "import sys\nfrom bench.cli import command\nsys.argv[1:] = ['list', 'models']\ncommand()\n"
        "import bitsandbytes.backends.default.ops as ops\n"
        "print(hasattr(ops._dequantize_blockwise_compute, '__wrapped__'),"
        " [name for name in sys.modules if name == 'torch._inductor.compile_fx'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True []"
