"""Which adapters get a gradient: a step on the meta device, where only the paths are real.

An adapter may match a module that the forward pass goes around: a tower that the batch does not
feed, a branch without gradient, a kernel that takes the module's weight and never calls it. It then
trains nothing, whatever its count of parameters.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import inspect
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from bench.adapters.config import AdapterConfig
from bench.compat import patched, private, unreset
from bench.errors import BenchError
from bench.predict.alike import deeper_names, shallower
from bench.predict.dependent import DEPENDENT
from bench.predict.failing import breaking
from bench.predict.fed import TASK, batch_of, batches
from bench.predict.journal import Untraceable
from bench.predict.values import KnownValues, tensors_in
from bench.targets.ledger import Hazard, Ledger
from bench.training.cost import name_of
from bench.training.loading import quiet_libraries
from bench.units import one_line

if TYPE_CHECKING:
    from bench.models.architectures import Model

_FORWARDS = ("forward", "cuda_kernels_forward")
"""Where transformers 5, and 4, hand a mixer's weights to the kernels of mamba-ssm."""
_DispatchMode = private("dispatch mode")
_END_SAID = 90
"""Characters of either end of a library's long message."""
_READ = torch.ops.aten._local_scalar_dense.default
_DRAW = torch.ops.aten.rand.default


@dataclass(frozen=True)
class Gradients:
    """What a step told of the adapters.

    Attributes:
        fed: what the batch held: text, image, audio.
        adapted: the adapted modules, and parameters of experts.
        without: adapted modules that got none.
        fused: adapted modules that get one here, and none where the kernels of mamba-ssm are
            installed, which take their weights and never call them.
        broken: adapted modules whose wrapper makes the forward pass raise `error`, which the base
            model's does not; then nothing is known of gradients. Where `error` stands without any,
            `field` of the configuration is at fault: `task_type`, PEFT's class for which raises, or
            `layer_replication`, where the model has something else for each of its own layers.
    """

    fed: tuple[str, ...]
    adapted: tuple[str, ...]
    without: tuple[str, ...]
    fused: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    error: str = ""
    field: str = "task_type"


def trace_gradients(model: Model, adapter: AdapterConfig) -> Gradients:
    """Run one forward and backward pass of the adapted model on the meta device.

    The batch is text where the model takes text, else what its class asks for. Raises Untraceable
    where the step depends on data, BenchError where PEFT refuses the configuration.
    """
    quiet_libraries()
    shallow = shallower(model, adapter)
    if shallow is not None:
        found = deepened(trace_whole(shallow, adapter), model)
        if found is not None:
            return found
    return trace_whole(model, adapter)


def deepened(found: Gradients, model: Model) -> Gradients | None:
    """What a step of fewer layers says of all of them; None where the middle ones differ."""
    told = (found.adapted, found.without, found.fused, found.broken)
    lists = [deeper_names(names, model) for names in told]
    if any(names is None for names in lists):
        return None
    adapted, without, fused, broken = (tuple(names or ()) for names in lists)
    return Gradients(found.fed, adapted, without, fused, broken, found.error)


def trace_whole(model: Model, adapter: AdapterConfig) -> Gradients:
    """As `trace_gradients`, with every layer traced: by the first batch that runs. Where none does
    and the base model's forward pass gets through one, what the adapter breaks."""
    reasons = []
    for kinds in batches(model):
        try:
            return _traced(model, adapter, kinds)
        except Untraceable as error:
            reasons.append(str(error))
        except BenchError:
            raise
        except Exception as error:  # a model's own code fails in many ways without an input
            reasons.append(_said(error))
    for kinds in batches(model):
        if (found := _failing(model, adapter, kinds)) is not None:
            return found
    raise Untraceable(
        f"{model.label}: whether every adapter gets a gradient cannot be told: {reasons[0]}"
    )


def _traced(model: Model, adapter: AdapterConfig, kinds: tuple[str, ...]) -> Gradients:
    base = model.build().to("meta", torch.bfloat16)
    peft_model = _injected(base, adapter).train()
    owners = _owners(base)
    got: set[int] = set()
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: got.add(id(p)))
    with _on_meta():
        batch = batch_of(model, base, kinds, torch.bfloat16)
        loss = _loss(peft_model(**batch))
        if loss.requires_grad:
            loss.backward()
        elif not _loss(peft_model.requires_grad_(True)(**batch)).requires_grad:
            raise Untraceable("the loss depends on no weight of the model")
    reached = {owners[key] for key in got & owners.keys()}
    adapted = list(dict.fromkeys(owners.values()))
    return Gradients(
        fed=_fed(kinds),
        adapted=tuple(adapted),
        without=tuple(name for name in adapted if name not in reached),
        fused=tuple(_fused(base, [name for name in adapted if name in reached])),
    )


def _failing(model: Model, adapter: AdapterConfig, kinds: tuple[str, ...]) -> Gradients | None:
    """What the adapter breaks of a forward pass in float32; None where it gets through, where the
    base model's does not, and where that cannot be told on meta."""
    base = model.build().to("meta", torch.float32)
    peft_model = _injected(base, adapter).train()
    adapted = dict.fromkeys(_owners(base).values())
    field = "task_type"

    def raised(run: Any) -> str:
        try:
            run(**batch)
        except Untraceable:
            raise
        except Exception as error:  # a model's own code raises whatever it likes
            said = _said(error)
            if isinstance(error, NotImplementedError) or "meta" in said:
                raise Untraceable(said) from error
            return said
        return ""

    try:
        with _on_meta():
            batch = batch_of(model, base, kinds, torch.float32)
            if not (error := raised(peft_model)):
                return None
            broken = breaking(base, lambda: raised(base))
            # `base` has the layers that were added even unwrapped.
            grown = broken is None and adapter.layer_replication
            if grown and not raised(model.build().to("meta", torch.float32)):
                broken, field = (), "layer_replication"
    except Exception:  # there is no such batch, or no values for it
        return None
    if broken is None:
        return None
    return Gradients(_fed(kinds), tuple(adapted), (), broken=broken, error=error, field=field)


def _fed(kinds: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(kind for kind in kinds if kind != TASK)


def _said(error: Exception) -> str:
    said = one_line(error)
    if len(said) > 2 * _END_SAID:  # it may begin or end with a module's whole text
        said = f"{said[:_END_SAID]} ... {said[-_END_SAID:]}"
    return f"{type(error).__name__}: {said}"


def _injected(base: Any, adapter: AdapterConfig) -> Any:
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings(), torch.device("meta"), unreset():
        warnings.simplefilter("ignore")
        try:
            return get_peft_model(base, LoraConfig(**adapter.to_dict()))
        except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
            said = str(error).partition("\n")[0]
            raise BenchError(f"PEFT refuses the configuration: {said}") from error


def _owners(base: Any) -> dict[int, str]:
    """The adapted module, or parameter of experts, that each trainable matrix belongs to."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: dict[int, str] = {}
    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer):
            parameter = getattr(module, "parameter_name", "")
            label = ".".join(filter(None, (name.replace(".base_layer", ""), parameter)))
            for held in module.adapter_layer_names:
                found |= {id(p): label for p in _parameters(getattr(module, held, None))
                          if p.requires_grad}  # fmt: skip
    return found


def _parameters(held: Any) -> Iterator[Any]:
    return held.parameters() if hasattr(held, "parameters") else iter(())


class _Followed(_DispatchMode):  # type: ignore[misc, valid-type]  # torch is seen untyped
    """Follows the values that come of the batch's integers, which a model may branch on."""

    def __init__(self) -> None:
        super().__init__()
        self.values = KnownValues()
        self._kept: list[torch.Tensor] = []  # a storage that ended would lend its address

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _DRAW and not args[0]:  # decides whether a layer is dropped: none is
            return torch.ones((), dtype=kwargs.get("dtype"))
        if func is _READ and args[0].device.type == "meta":
            value = self.values.of(args[0])
            if value is None:
                raise Untraceable("the step reads a value that depends on data")
            return value.item()
        known = DEPENDENT.get(name_of(func))
        run = known(self.values, True, func, args) if known else None
        try:
            out = func(*args, **kwargs) if run is None else run()
        except NotImplementedError:
            out = self.values.shaped(func, args, kwargs)
            if out is None:
                raise Untraceable(f"{func}: its result depends on data") from None
        self.values.follow(func, args, kwargs, out)
        self._kept += [t for t in tensors_in(out) if self.values.of(t) is not None]
        return out


@contextlib.contextmanager
def _on_meta() -> Iterator[None]:
    """Where a step is traced: values that follow from the batch are known, no warning is said."""
    with _Followed(), warnings.catch_warnings(), _whole_autocast():
        warnings.simplefilter("ignore")
        yield


def _whole_autocast() -> contextlib.AbstractContextManager[None]:
    """Meta has no autocast; a model that switches it off for a part finds it off."""

    def off(*_: Any, **__: Any) -> Any:
        return contextlib.nullcontext()

    return patched((torch, "autocast", off))


def _loss(out: Any) -> torch.Tensor:
    """The loss, or the sum of the logits, or of whatever has a gradient."""
    found: Any = getattr(out, "loss", None)
    if found is None and getattr(out, "logits", None) is not None:
        found = out.logits.float().sum()
    if found is None:
        parts = [t for t in tensors_in(list(out.values())) if t.requires_grad]
        if not parts:
            raise Untraceable("no output of the model depends on an adapter")
        found = torch.stack([t.float().sum() for t in parts]).sum()
    return found


def _fused(base: Any, adapted: list[str]) -> Iterator[str]:
    """Adapted modules whose weight their mixer hands to a kernel, by the names of the model."""
    from transformers import PreTrainedModel

    taken: dict[type, frozenset[str]] = {}
    for name in adapted:
        owner, _, leaf = name.rpartition(".")
        kind = type(base.get_submodule(owner))
        if kind not in taken:
            whole = issubclass(kind, PreTrainedModel)  # no mixer: it hands its head to a function
            taken[kind] = frozenset() if whole else weights_handed_over(kind)
        if leaf in taken[kind]:
            yield name


def weights_handed_over(mixer: type) -> frozenset[str]:
    """Children whose weight a class's forward pass gives to a function, beside calling them.

    `fused(x, self.out_proj.weight)` where the kernel is there, `self.out_proj(x)` where it is not:
    an adapter is only in the second. Read off the source, which is not run.
    """
    handed: set[str] = set()
    called: set[str] = set()
    for forward in filter(None, (getattr(mixer, name, None) for name in _FORWARDS)):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(forward)))
        except (OSError, TypeError, SyntaxError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                if isinstance(node.func, ast.Name) and hasattr(builtins, node.func.id):
                    continue  # isinstance and its like ask about the weight, and multiply nothing
                called.add(_child(node.func))
                given = (*node.args, *(keyword.value for keyword in node.keywords))
                handed |= {_child(a.value) for a in given
                           if isinstance(a, ast.Attribute) and a.attr == "weight"}  # fmt: skip
    return frozenset((handed & called) - {""})


def _child(node: ast.AST) -> str:
    """The name in `self.name`; "" for anything else."""
    of_self = (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )
    return node.attr if of_self else ""  # type: ignore[attr-defined]


def with_gradients(model: Model, ledger: Ledger) -> Ledger:
    """The ledger with what a step says of it among its hazards. Raises as `trace_gradients`."""
    found = trace_gradients(model, ledger.adapter)
    return replace(ledger, hazards=(*ledger.hazards, *gradient_hazards(found, ledger.adapter)))


def gradient_hazards(found: Gradients, adapter: AdapterConfig) -> tuple[Hazard, ...]:
    """What to say of adapters that train nothing, or let nothing train, with their paths."""
    if found.error:
        where, out = f"{grouped(found.broken)}: with an adapter there", "them out of the targets"
        if not found.broken:
            where, out = f"with {found.field}", f"{found.field} out"
            if found.field == "task_type":
                where = f"with PEFT's class for task_type {adapter.task_type}"
        return (
            Hazard(
                "forward-fails",
                f"{where} the forward pass on {' and '.join(found.fed)} raises, and without it "
                f"does not: {found.error}; leave {out}",
            ),
        )
    hazards = []
    if found.without:
        fed = " and ".join(found.fed)
        hazards.append(
            Hazard(
                "no-gradient",
                f"{len(found.without)} of {len(found.adapted)} adapters get no gradient in a step "
                f"on {fed}: {grouped(found.without)}; they train nothing unless the data reach "
                "them",
            )
        )
    if found.fused:
        hazards.append(
            Hazard(
                "kernel-takes-weight",
                f"{len(found.fused)} adapters get no gradient where the kernels of mamba-ssm or "
                f"causal-conv1d are installed, which take the weight and never call the module: "
                f"{grouped(found.fused)}",
            )
        )
    return tuple(hazards)


def grouped(names: tuple[str, ...], shown: int = 4) -> str:
    """Module names by their path, a layer's number as `*`: "model.visual.blocks.*.mlp.fc1 (32)"."""
    counts = Counter(re.sub(r"\.\d+(?=\.)", ".*", name) for name in names)
    parts = [f"{path} ({n})" if n > 1 else path for path, n in counts.most_common()]
    more = f" and {len(parts) - shown} more paths" if len(parts) > shown else ""
    return ", ".join(parts[:shown]) + more
