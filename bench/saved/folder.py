"""What a folder holds: an adapter, a checkpoint of Trainer, or a tool's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.files import unreadable

CONFIG = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
STATE = "trainer_state.json"
_CONFIGS = (".yaml", ".yml")


@dataclass(frozen=True)
class AdapterFound:
    """The configuration in a folder, or the file that was named; `weights` where an adapter is
    trained. `kind` says what it was taken for."""

    config: Path
    weights: Path | None = None
    kind: str = ""


def find(path: Path) -> AdapterFound:
    """What there is at `path`.

    Raises BenchError, naming what it found, for nothing to check, for two configurations, and for
    weights that are a pickle: reading one runs whatever code it holds.
    """
    path = path.expanduser()
    try:
        path.stat()
    except FileNotFoundError:
        raise BenchError(f"{path}: no such file or folder") from None
    except OSError as error:
        raise unreadable(path, error) from None
    if not path.is_dir():
        return _file(path)
    names = {entry.name for entry in path.iterdir() if entry.is_file()}
    yamls = sorted(name for name in names if Path(name).suffix in _CONFIGS)
    if CONFIG in names:
        if yamls:
            raise _several(path, [CONFIG, *yamls])
        return _adapter(path, names)
    if WEIGHTS_FILE in names or PICKLE in names:
        raise BenchError(f"{path}: an adapter without its {CONFIG}, which says what it is")
    configs = [*yamls, *(["args.json"] if "args.json" in names else [])]
    if len(configs) > 1:
        raise _several(path, configs)
    if configs:
        return AdapterFound(path / configs[0])
    inner = sorted(p.parent.name for p in path.glob(f"*/{CONFIG}"))
    if inner:
        raise BenchError(f"{path}: holds {', '.join(inner)}: name the one to check")
    raise BenchError(
        f"{path}: nothing to check: no {CONFIG}, no YAML and no args.json is in that folder"
    )


def further(path: Path) -> tuple[list[Path], list[Path]]:
    """(the adapters, Trainer's checkpoints) in folders of their own beside the one at `path`.

    PEFT saves the adapters of a model so: "default" in the folder, each other one in a folder of
    its name (peft 0.21 `PeftModel.save_pretrained`). Both are empty where `path` is no adapter's
    folder, or cannot be read, which `find` says.
    """
    adapters: list[Path] = []
    checkpoints: list[Path] = []
    try:
        if (path.expanduser() / CONFIG).is_file():
            for config in sorted(path.expanduser().glob(f"*/{CONFIG}")):
                inner = path / config.parent.name
                (checkpoints if (config.parent / STATE).exists() else adapters).append(inner)
    except OSError:
        return [], []
    return adapters, checkpoints


def _file(path: Path) -> AdapterFound:
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise _pickle(path)
    if path.suffix == ".safetensors":
        beside = path.parent / CONFIG
        if not beside.exists():
            raise BenchError(f"{path}: weights without {CONFIG} beside them, which says what they "
                             "are")  # fmt: skip
        return AdapterFound(beside, path, "adapter")
    return AdapterFound(path)


def _adapter(path: Path, names: set[str]) -> AdapterFound:
    if WEIGHTS_FILE in names:
        kind = "Trainer checkpoint" if STATE in names else "adapter"
        return AdapterFound(path / CONFIG, path / WEIGHTS_FILE, kind)
    if PICKLE in names:
        raise _pickle(path / PICKLE)
    for name in sorted(entry.name for entry in path.iterdir()):
        if name == WEIGHTS_FILE:  # a link to what is not there, a folder, a pipe
            raise BenchError(f"{path / name}: is there, and is no file that can be read")
        if name == f"{WEIGHTS_FILE}.index.json":
            raise BenchError(f"{path / name}: weights in several files, which PEFT does not load")
    return AdapterFound(path / CONFIG)


def _several(path: Path, configs: list[str]) -> BenchError:
    names = ", ".join(sorted(configs))
    return BenchError(
        f"{path}: holds {len(configs)} configurations ({names}): name the one to check"
    )


def _pickle(path: Path) -> BenchError:
    return BenchError(
        f"{path}: a pickle, which runs whatever code it holds when it is read; save the adapter "
        "again as safetensors (model.save_pretrained writes it) and check that"
    )
