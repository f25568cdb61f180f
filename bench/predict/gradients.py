"""Which adapters get a gradient: a step on the meta device, where only the paths are real.

An adapter may match a module that the forward pass goes around: a tower that the batch does not
feed, a branch without gradient, a kernel that takes the module's weight and never calls it. It then
trains nothing, whatever its count of parameters.
"""

from __future__ import annotations

import ast
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
from bench.compat import private, unreset
from bench.errors import BenchError
from bench.predict.alike import deeper_names, shallower
from bench.predict.journal import Untraceable
from bench.predict.values import KnownValues, tensors_in
from bench.targets.ledger import Hazard, Ledger
from bench.tasks import AUDIO, IMAGES, TRAINED
from bench.training.batches import Batch
from bench.training.loading import quiet_libraries
from bench.training.options import StepOptions
from bench.training.step import make_batch

if TYPE_CHECKING:
    from bench.models.architectures import Model

_FORWARDS = ("forward", "cuda_kernels_forward")
"""Where transformers 5, and 4, hand a mixer's weights to the kernels of mamba-ssm."""
_DispatchMode = private("dispatch mode")
_READ = torch.ops.aten._local_scalar_dense.default
_DRAW = torch.ops.aten.rand.default
_LENGTH = 16
_MEL_BINS = 80


@dataclass(frozen=True)
class Gradients:
    """What a step told of the adapters.

    Attributes:
        fed: what the batch held: text, image, audio.
        adapted: the adapted modules, and parameters of experts.
        without: adapted modules that got none.
        fused: adapted modules that get one here, and none where the kernels of mamba-ssm are
            installed, which take their weights and never call them.
    """

    fed: tuple[str, ...]
    adapted: tuple[str, ...]
    without: tuple[str, ...]
    fused: tuple[str, ...] = ()


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
    lists = [deeper_names(names, model) for names in (found.adapted, found.without, found.fused)]
    if any(names is None for names in lists):
        return None
    adapted, without, fused = (tuple(names or ()) for names in lists)
    return Gradients(found.fed, adapted, without, fused)


def trace_whole(model: Model, adapter: AdapterConfig) -> Gradients:
    """As `trace_gradients`, with every layer traced: by the first batch that runs."""
    reasons = []
    for kinds in _batches(model):
        try:
            return _traced(model, adapter, kinds)
        except Untraceable as error:
            reasons.append(str(error))
        except BenchError:
            raise
        except Exception as error:  # a model's own code fails in many ways without an input
            reasons.append(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
    raise Untraceable(
        f"{model.label}: whether every adapter gets a gradient cannot be told: {reasons[0]}"
    )


def _traced(model: Model, adapter: AdapterConfig, kinds: tuple[str, ...]) -> Gradients:
    base = model.build().bfloat16()
    peft_model = _injected(base, adapter).train()
    owners = _owners(base)
    got: set[int] = set()
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: got.add(id(p)))
    with _Followed(), warnings.catch_warnings(), _whole_autocast():
        warnings.simplefilter("ignore")
        batch = _batch(model, base, kinds)
        _loss(peft_model(**batch)).backward()
    reached = {owners[key] for key in got & owners.keys()}
    adapted = list(dict.fromkeys(owners.values()))
    return Gradients(
        fed=tuple(kind for kind in kinds if kind != _TASK),
        adapted=tuple(adapted),
        without=tuple(name for name in adapted if name not in reached),
        fused=tuple(_fused(base, [name for name in adapted if name in reached])),
    )


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
        try:
            out = func(*args, **kwargs)
        except NotImplementedError:
            raise Untraceable(f"{func}: its result depends on data") from None
        self.values.follow(func, args, kwargs, out)
        self._kept += [t for t in tensors_in(out) if self.values.of(t) is not None]
        return out


@contextlib.contextmanager
def _whole_autocast() -> Iterator[None]:
    """Meta has no autocast; a model that switches it off for a part finds it off."""
    before = torch.autocast

    def off(*_: Any, **__: Any) -> Any:
        return contextlib.nullcontext()

    torch.autocast = off
    try:
        yield
    finally:
        torch.autocast = before


_TASK = "task"


def _batches(model: Model) -> list[tuple[str, ...]]:
    """What to feed, in the order of trying: the task's own batch, which is text alone wherever the
    model takes text; else whatever its class asks for."""
    task = TRAINED.get(model.task_class)
    own = [(_TASK, {AUDIO: "audio", IMAGES: "image"}.get(task.inputs, "text"))] if task else []
    parameters = inspect.signature(_class_of(model).forward).parameters
    image = [("image",)] if "pixel_values" in parameters else []
    audio = [("audio",)] if {"input_features", "input_values"} & parameters.keys() else []
    if "input_ids" in parameters:
        return [*own, ("text",), *(("text", *kinds) for kinds in (*image, *audio))]
    both = [(*kinds, "text") for kinds in (*image, *audio)]
    return [*own, *image, *audio, *both] or [("text",)]


def _class_of(model: Model) -> Any:
    from bench.models.classes import model_class

    loader = model_class(model.auto_class)
    if hasattr(loader, "forward"):
        return loader
    private("models of a class")
    return loader._model_mapping[type(model.transformers_config)]


def _batch(model: Model, base: Any, kinds: tuple[str, ...]) -> dict[str, Any]:
    """One batch on meta: the task's own where it is known, else every input of these kinds."""
    config = base.config
    if kinds[0] == _TASK:
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = 0
        options = StepOptions(batch_size=2, seq_len=_LENGTH)
        given: Batch = make_batch(config, model.task_class, options, "meta")
        return {**_floats(given), **_no_cache(base)}
    taken = inspect.signature(type(base).forward).parameters
    batch = {}
    ids = (torch.arange(2 * _LENGTH, device="meta") % 7 + 10).view(2, _LENGTH)
    if "text" in kinds and "input_ids" in taken:
        batch["input_ids"] = ids
        batch["attention_mask"] = torch.ones_like(ids)
    if "text" in kinds and "decoder_input_ids" in taken:
        batch["decoder_input_ids"] = ids
    if "image" in kinds and "pixel_values" in taken:
        batch["pixel_values"] = torch.empty(2, *_image_shape(config), device="meta")
    if "audio" in kinds and "input_features" in taken:
        bins = getattr(config, "num_mel_bins", _MEL_BINS)
        frames = 2 * getattr(config, "max_source_positions", 1500)
        batch["input_features"] = torch.empty(2, bins, frames, device="meta")
    if "audio" in kinds and "input_values" in taken:
        batch["input_values"] = torch.empty(2, 4000, device="meta")
    return {**_floats(batch), **_no_cache(base)}


def _floats(batch: dict[str, Any]) -> dict[str, Any]:
    return {k: t.bfloat16() if t.is_floating_point() else t for k, t in batch.items()}


def _no_cache(base: Any) -> dict[str, Any]:
    taken = inspect.signature(type(base).forward).parameters
    return {"use_cache": False} if "use_cache" in taken else {}


def _image_shape(config: Any) -> tuple[int, int, int]:
    part = next((c for c in (getattr(config, "vision_config", None), config)
                 if getattr(c, "image_size", None)), config)  # fmt: skip
    size = getattr(part, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    return getattr(part, "num_channels", 3) or 3, height, width


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
    if not found.requires_grad:
        raise Untraceable("no adapter is on the path to the loss")
    return found


def _fused(base: Any, adapted: list[str]) -> Iterator[str]:
    """Adapted modules whose weight their mixer hands to a kernel, by the names of the model."""
    taken: dict[type, frozenset[str]] = {}
    for name in adapted:
        owner, _, leaf = name.rpartition(".")
        kind = type(base.get_submodule(owner))
        if kind not in taken:
            taken[kind] = weights_handed_over(kind)
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
    return replace(ledger, hazards=(*ledger.hazards, *gradient_hazards(found)))


def gradient_hazards(found: Gradients) -> tuple[Hazard, ...]:
    """What to say of adapters that train nothing, with their paths."""
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
