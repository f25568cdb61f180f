"""`bench` under a name that nothing shadows: `lora_target_bench.X` is `bench.X`, the same objects.

Many a repository has a folder `bench` of its own. Where it comes first on the path, ours is read
under this name instead, its own imports of `bench` included, and theirs stays theirs:

    import bench              theirs
    import lora_target_bench  ours, loaded as lora_target_bench.*

Where `bench` is ours, both names mean the module that was imported first. To import this package
imports nothing of `bench`, and puts no `bench` into `sys.modules`.
"""

from __future__ import annotations

import builtins
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench import *  # noqa: F403
    from bench import __version__ as __version__

_THEIRS, _OURS = "bench", __name__
_PUBLIC = "__bench__"
"""`bench`'s own first file, as a module of this package."""
_OWN = frozenset(path.stem for path in Path(__file__).parent.glob("*.py"))
_FOLDER = Path(__file__).resolve().parent.parent / _THEIRS


def _bench_is_ours() -> bool:
    """Whether `bench`, as this process has imported it, is the package beside this one."""
    return is_ours(getattr(sys.modules.get(_THEIRS), "__file__", None))


def is_ours(file: str | None) -> bool:
    """Whether a package's first file is that of the `bench` beside this one."""
    return file is not None and Path(file).resolve().parent == _FOLDER


def _import(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """`__import__` for our modules that go by this package's name."""
    if level == 0 and (name == _THEIRS or name.startswith(f"{_THEIRS}.")):
        name = _OURS + name.removeprefix(_THEIRS)
    return builtins.__import__(name, globals, locals, fromlist or (), level)


class _OwnName(SourceFileLoader):
    """Loads a file of `bench` as a module of this package."""

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _import}
        super().exec_module(module)


class _OtherName:
    """Gives a module that is loaded a second name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put the second name's there


class _Finder:
    """Finds `lora_target_bench.X`, and `bench.X` where that is loaded under this name already."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, rest = name.partition(".")
        if package == _OURS and rest and rest not in _OWN:
            if _bench_is_ours():
                return ModuleSpec(name, _OtherName(f"{_THEIRS}.{rest}"))  # type: ignore[arg-type]
            place = _FOLDER.joinpath(*rest.split(".")) if rest != _PUBLIC else _FOLDER
            return _found(name, place)
        if package == _THEIRS and f"{_OURS}.{rest}" in sys.modules and _bench_is_ours():
            return ModuleSpec(name, _OtherName(f"{_OURS}.{rest}"))  # type: ignore[arg-type]
        return None


def _found(name: str, place: Path) -> ModuleSpec | None:
    folder = place / "__init__.py"
    for file, inside in ((folder, [str(place)]), (place.with_suffix(".py"), None)):
        if file.is_file():
            loader = _OwnName(name, str(file))
            return importlib.util.spec_from_file_location(
                name, file, loader=loader, submodule_search_locations=inside
            )
    return None


sys.meta_path.insert(0, _Finder())


def __getattr__(name: str) -> Any:
    """The public names of `bench`, and its list of them, each imported when first asked for."""
    if name in ("__all__", "__version__") or not name.startswith("_"):
        public = _public()
        if name in ("__all__", "__version__", *public.__all__):
            return getattr(public, name)
    raise AttributeError(f"module {_OURS!r} has no attribute {name!r}")


def _public() -> ModuleType:
    """`bench` itself: ours if it is imported, else its first file under a name of this package."""
    if _bench_is_ours():
        return sys.modules[_THEIRS]
    return importlib.import_module(f"{_OURS}.{_PUBLIC}")
