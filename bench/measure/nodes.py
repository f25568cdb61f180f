"""What the nodes of a cluster are: asked of each before anything is measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

from bench.files import PACKAGE, SUITES
from bench.process import LIBRARIES
from bench.training.machine import Machine, machine, versions


@dataclass(frozen=True)
class Facts:
    """What a node is: its machine (None without torch), the versions of what can be imported there,
    why something cannot, and a digest of this project's own code."""

    machine: Machine | None
    versions: Mapping[str, str]
    missing: Mapping[str, str]
    code: str


@dataclass(frozen=True)
class Node:
    """One that tasks can run on. cpus, gpus: how many it lends, as it was started."""

    id: str
    name: str
    cpus: float
    gpus: float
    machine: Machine


def obstacle(own: Facts, theirs: Facts, gpus: float) -> str:
    """Why a node that lends `gpus` GPUs cannot measure beside us; "" where it can."""
    for name, why in theirs.missing.items():
        return f"{name} cannot be imported there ({why}): install {name}=={own.versions.get(name)}"
    others = [
        f"{name} {theirs.versions.get(name, 'is missing')} there, {own.versions[name]} here"
        for name in ("python", *LIBRARIES)
        if name in own.versions and own.versions[name] != theirs.versions.get(name)
    ]
    if others:
        return f"{', '.join(others)}: install the same versions on every node"
    if theirs.code != own.code:
        return "another release or checkout of this project than here: install the same one"
    found = theirs.machine and theirs.machine.accelerator
    if gpus and not found:
        return f"it lends {gpus:g} GPU, and torch {theirs.versions['torch']} finds none there"
    if found and not gpus:
        return f"it has a GPU ({found.name}) and lends none: ray start --num-gpus={found.count}"
    return ""


def facts(imports: bool = True) -> Facts:
    """What this node is; without `imports`, by what is installed alone."""
    found, missing = versions(), {}
    for name in LIBRARIES if imports else ():
        try:
            import_module(name)
        except Exception as error:  # a native library may fail in any way
            missing[name] = last_line(error)
    here = machine() if imports and "torch" not in missing else None
    return Facts(here, found, missing, code_digest())


def code_digest() -> str:
    """Sixteen hex digits over this project's own Python files, the suites' included."""
    digest = hashlib.sha256()
    for folder in (PACKAGE, SUITES):
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def last_line(error: BaseException) -> str:
    """The end of what an error says, on a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:300]
