"""What the values of a trained LoRA adapter say: whether it trained at all, and where.

For each adapted module the update of its weight is s·B·A; its Frobenius norm is worked out from two
r × r products: ‖BA‖² = tr(BᵀB · AAᵀ).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.files import unreadable

_PAIRS = tuple(
    (f".{first}{end}", f".{first[:-1]}B{end}")
    for first, ends in (
        ("lora_A", (".weight", ".default.weight")),
        ("lora_embedding_A", ("", ".default")),
    )
    for end in ends
)
"""As PEFT saves them, and with the adapter's name, as a model's own `state_dict()` has them."""
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Update:
    """One module's update: the Frobenius norm of B·A, before scaling; whether B is all zero."""

    module: str
    norm: float
    untrained: bool


@dataclass(frozen=True)
class Values:
    """What an adapter's values say.

    Attributes:
        updates: one for each adapted module.
        broken: tensors that hold NaN or infinity.
        beside: tensors that are no part of an adapter: what is trained whole, biases, tokens.
    """

    updates: tuple[Update, ...]
    broken: tuple[str, ...]
    beside: tuple[str, ...] = ()

    @property
    def never_trained(self) -> bool:
        """Every B is zero, as an ordinary initialisation leaves it."""
        return bool(self.updates) and all(update.untrained for update in self.updates)

    @property
    def unchanged(self) -> tuple[str, ...]:
        """Modules whose update is zero though another's is not."""
        if self.never_trained:
            return ()
        return tuple(u.module for u in self.updates if u.norm == 0)

    def norms_by(self, role_of: Callable[[str], str]) -> dict[str, tuple[int, float, float]]:
        """Role → (modules, smallest, largest norm of B·A), in the order of the file. An update of
        experts is called as PEFT nests them: see `parameter_of`."""
        found: dict[str, list[float]] = {}
        for update in self.updates:
            found.setdefault(role_of(update.module), []).append(update.norm)
        return {role: (len(norms), min(norms), max(norms)) for role, norms in found.items()}


def parameter_of(module: str, adapted: Mapping[str, Sequence[str]]) -> str:
    """The parameter that an update is of, its own name where it is of none.

    PEFT wraps a module once for each of its parameters, in their order: the last of them lies
    outermost, and each `base_layer` leads one further in. `adapted` has them by their module.
    """
    owner, depth = module, 0
    while owner.endswith(".base_layer"):
        owner, depth = owner.removesuffix(".base_layer"), depth + 1
    names = adapted.get(owner, ())
    return names[-1 - depth] if depth < len(names) else module


def read_values(path: Path) -> Values:
    """Read every tensor of an adapter_model.safetensors, two at a time.

    Raises BenchError, naming the file, where it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            names = dict.fromkeys(file.keys())
            broken = [name for name in names if not _finite(file.get_tensor(name))]
            bad = set(broken)
            updates = [
                _update(name.removesuffix(first), file.get_tensor(name), file.get_tensor(other))
                for first, second in _PAIRS
                for name in names
                if name.endswith(first)
                and (other := name.removesuffix(first) + second) in names
                and not {name, other} & bad
                and all(len(file.get_slice(each).get_shape()) > 1 for each in (name, other))
            ]
    except (SafetensorError, OSError, RuntimeError) as error:  # of torch: no arithmetic in a dtype
        raise unreadable(path, error) from None
    beside = tuple(name for name in names if ".lora_" not in name)
    return Values(tuple(updates), tuple(broken), beside)


def _finite(tensor: Any) -> bool:
    wide = tensor.float() if tensor.element_size() == 1 else tensor  # torch asks no float8
    return not tensor.is_floating_point() or bool(wide.isfinite().all())


def _update(module: str, a: Any, b: Any) -> Update:
    # (r, in) and (out, r); a convolution's window belongs to the inputs. Experts stack theirs:
    # r is the rank times the experts there, and the norm is that of the stack.
    a = a.double().flatten(1)
    b = b.double().reshape(b.shape[0], -1)
    if a.shape[0] == b.shape[1]:
        squared = float(((b.T @ b) * (a @ a.T)).sum())
    else:
        squared = float(b.square().sum() * a.square().sum())
    name = module.removeprefix(_PREFIX)
    return Update(name, max(squared, 0.0) ** 0.5, not bool(b.any()))
