"""Which adapters break the forward pass: it raises with their wrappers, and not without them.

PEFT puts a wrapper in the place of a module, and the wrapper has few of the module's attributes. A
parent that reads another one raises: Whisper's encoder asks its `conv1` for its `stride`.
"""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any


def breaking(base: Any, raised: Callable[[], str]) -> tuple[str, ...] | None:
    """The modules whose wrappers make the forward pass raise.

    `raised` runs the forward pass of `base`, and gives what it raised, "" for nothing. Wrapped
    modules alike in all layers are tried together: each group with all others unwrapped; where none
    is at fault alone, all of them are. Empty where `base` gets through with its wrappers; None
    where it raises without them too.
    """
    wrapped = _wrapped(base)
    with _unwrapped(base, wrapped):
        if raised():
            return None
    if not raised():
        return ()
    alike: dict[str, list[str]] = defaultdict(list)
    for name in wrapped:
        alike[re.sub(r"\.\d+(?=\.)", ".*", name)].append(name)
    found: list[str] = []
    for names in alike.values():
        with _unwrapped(base, {n: plain for n, plain in wrapped.items() if n not in names}):
            if raised():
                found += names
    return tuple(found or wrapped)


def _wrapped(base: Any) -> dict[str, Any]:
    """What PEFT wrapped of `base`, by name: the module that was there before."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    found: dict[str, Any] = {}
    for name, module in base.named_modules():
        if any(name.startswith(f"{outer}.") for outer in found):
            continue  # a wrapper within a wrapper
        if isinstance(module, BaseTunerLayer):
            found[name] = module.get_base_layer()
        elif isinstance(module, ModulesToSaveWrapper):
            found[name] = module.original_module
    return found


@contextlib.contextmanager
def _unwrapped(base: Any, plain: Mapping[str, Any]) -> Iterator[None]:
    """`base` with these modules in the place of their wrappers."""
    before = {name: base.get_submodule(name) for name in plain}
    try:
        _put(base, plain)
        yield
    finally:
        _put(base, before)


def _put(base: Any, modules: Mapping[str, Any]) -> None:
    for name, module in modules.items():
        owner, _, leaf = name.rpartition(".")
        setattr(base.get_submodule(owner), leaf, module)
