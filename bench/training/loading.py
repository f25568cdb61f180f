"""A case's model, built straight into its precision: module by module, from a seed or real weights.

The model is first built on `meta`, where it has shapes and no memory. Then every tensor is made on
the device in its final form; a quantized layer's full-precision weight lives only until that
layer is quantized, so the peak while loading stays close to the final size.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.compat import patched, private, unasked
from bench.errors import BenchError
from bench.models.classes import config_by_own_code, config_of_type
from bench.models.precision import precision
from bench.models.quantization import bitsandbytes_config, quiet_bitsandbytes, swap_linear_layers
from bench.models.stored import read_stored
from bench.models.stored_layers import store_linear_layers
from bench.tasks import heads_of
from bench.training.batches import Batch
from bench.training.cases import Case
from bench.training.liger import Patch, check_liger, fused_loss, put_kernels
from bench.training.options import EAGER, PLAIN, SDPA, check_step
from bench.training.parallel import check_parallel, spread, storage_dtype
from bench.training.step import Training, hold_in_float32, make_batch, make_optimizer, make_scaler
from bench.training.weights import check_loaded


def load(case: Case, device: str = "cpu") -> Training:
    """Build the case's base model, adapters, batch and optimizer on `device`.

    Leaves torch's random state seeded with `case.step.seed`. Raises what the libraries raise.
    """
    check_step(case.step)
    check_liger(case, measured=True)
    check_parallel(case)
    if precision(case.precision).stored:
        raise BenchError(f"{case.model}: {case.precision} weights are predicted, not measured")
    quiet_libraries()
    return prepared(case, *base_model(case, device), device)


def base_model(case: Case, device: str = "cpu") -> tuple[Any, Any]:
    """The transformers config and the base model, drawn (what the weights lack, too) from
    `case.step.seed`."""
    torch.manual_seed(case.step.seed)
    config = make_config(case)
    if case.weights:
        return config, _real_weights(case, config, device)
    return config, random_weights(case, config, device)


def prepared(
    case: Case, config: Any, model: Any, device: str, liger: Patch = put_kernels
) -> Training:
    """The rest of `load` for a base model that is there: adapters, batch, optimizer. `liger` puts
    Liger's kernels into it, where the step has them."""
    return ready(case, config, spread(case, adapt(case, model)), device, liger)


def ready(case: Case, config: Any, model: Any, device: str, liger: Patch = put_kernels) -> Training:
    """The rest of `load` for an adapted model that is there: batch, optimizer."""
    patches = liger(model, fused_loss(case.step)) if case.step.liger else ()
    batch = _heard(make_batch(config, case.auto_class, case.step, device), model)
    optimizer = make_optimizer(model, case.step)
    trainer = None
    if case.step.by_trainer:
        from bench.training.trainers import make_trainer

        trainer = make_trainer(case, model, batch, optimizer, device)
    training = Training(
        model,
        batch,
        optimizer,
        make_scaler(case, device),
        case.step,
        adapted_layers=count_adapted_layers(model),
        quantized_layers=sum(1 for _ in quantized_layers(model)),
        trainer=trainer,
        patches=patches,
    )
    torch.manual_seed(case.step.seed)
    return training


def _heard(batch: Batch, model: torch.nn.Module) -> Batch:
    """The batch with audio in the model's dtype: its convolutions do not cast, as images' do."""
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    audio = batch.keys() & {"input_features", "input_values"}
    return {name: t.to(dtype) if name in audio else t for name, t in batch.items()}


def make_config(case: Case) -> Any:
    """The transformers config that the case's values describe."""
    if case.code:
        config = config_by_own_code(Path(case.code))
    else:
        left_out = ("model_type", "quantization_config")
        values = {k: v for k, v in case.config.items() if k not in left_out}
        config = config_of_type(case.config["model_type"], values)
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0  # a sequence classifier built on a decoder refuses batches without
    config.use_cache = False
    for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if getattr(config, name, 0.0):
            setattr(config, name, 0.0)  # the step that skips no layer: the largest of all
    return config


def meta_model(case: Case, config: Any) -> Any:
    """The base model on the meta device, in the precision's compute dtype, not yet quantized."""
    import transformers

    auto_class = getattr(transformers, case.auto_class)
    dtype = getattr(torch, case.compute)
    trusted = case.code is not None
    with torch.device("meta"), undrawn(), unasked(trusted):
        return auto_class.from_config(
            config, dtype=dtype, attn_implementation=_attention(case), trust_remote_code=trusted
        )


_INT8_SPREAD = 0.5
"""The widest standard deviation of what an int8 layer makes of normalized inputs. LLM.int8 keeps
columns with a value of 6 (its `llm_int8_threshold`) or more in 16 bits: a trained model has a few
of them. With the usual deviation of 0.02 random weights as wide as Phi-3-medium's have one in every
column of the down projection's inputs, which took 2.7 GiB more on an H200."""
_INITIALIZERS = ("kaiming_uniform_", "uniform_", "normal_", "zeros_")


def undrawn() -> contextlib.AbstractContextManager[None]:
    """While active, torch's initializers leave a tensor as it is: on meta there is nothing to draw,
    and its functions take a while to find that out."""
    import transformers.initialization  # noqa: F401  # which keeps torch's own as it finds them

    return patched(*((torch.nn.init, name, _as_it_is) for name in _INITIALIZERS))


def _as_it_is(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return tensor


def _attention(case: Case) -> str | None:
    """None lets transformers choose: sdpa, and eager for the few models that have no other."""
    return {SDPA: None, EAGER: EAGER}.get(case.step.attention, SDPA)


def random_weights(case: Case, config: Any, device: str) -> Any:
    """The base model in the case's precision, its weights drawn as transformers would."""
    return filled(skeleton(case, config), case, config, device)


def skeleton(case: Case, config: Any) -> Any:
    """The base model on the meta device, with the layers of its quantization where they belong."""
    kind = precision(case.precision)
    model = meta_model(case, config)
    if kind.stored:
        stored = read_stored(case.config["quantization_config"], case.model)
        store_linear_layers(model, stored, getattr(torch, case.compute))
    if kind.quantized:
        skipped = _skipped_modules(case, model)
        drawn = _weight_deviations(model)
        how = bitsandbytes_config(kind, skipped, case.compute, storage_dtype(case))
        swap_linear_layers(model, how)
        for name, module in model.named_modules():
            module.weight_deviation = drawn.get(name)
    return model


def filled(model: Any, case: Case, config: Any, device: str) -> Any:
    """A skeleton with every tensor made on `device`, its weights drawn as transformers would; int8
    ones narrower where activations would reach LLM.int8's threshold (`_INT8_SPREAD`)."""
    dtype = getattr(torch, case.compute)
    usual = getattr(config.get_text_config(), "initializer_range", None) or 0.02
    for module in model.modules():
        module._is_hf_initialized = False
    quantized = set(quantized_layers(model))
    made: dict[int, torch.nn.Parameter] = {}  # by id of the meta parameter: tied weights stay tied
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros_like(buffer, device=device))
    for module, name, parameter in _in_loading_order(model, case):
        if module in quantized and name == "weight":
            std = module.weight_deviation
            std = usual if std is None else std
            if precision(case.precision).name == "int8" and std == usual:  # T5 goes by the width
                std = min(std, _INT8_SPREAD / math.sqrt(parameter.shape[1]))
            module.weight = _random_quantized(parameter, dtype, std, device)
            module.weight._is_hf_initialized = True  # GPT-2 draws some weights by their name
            module._is_hf_initialized = True
            continue
        if id(parameter) not in made:
            value = torch.zeros_like(parameter, device=device)
            made[id(parameter)] = held = torch.nn.Parameter(value, requires_grad=False)
            held._is_hf_initialized = not value.is_floating_point()  # as a checkpoint stores it
        setattr(module, name, made[id(parameter)])
    model.initialize_weights()
    return model


def loaded_as_by_users(case: Case) -> bool:
    """Whether quantized weights arrive as `from_pretrained` brings them: in every loop but this
    project's own, which makes them module by module: one after the other, by name. (Others are
    loaded on the CPU, and moved.) The block that transformers may reserve before, to warm the
    allocator up, is left out because with it the peak reserved disagreed with measured rows: a
    selection by those rows, and no reading of what their loading did."""
    return case.step.loop != PLAIN and precision(case.precision).quantized


def _in_loading_order(model: Any, case: Case) -> list[tuple[Any, str, torch.nn.Parameter]]:
    """Every module's own parameters; in the order in which they reach the device."""
    found = [
        (f"{path}.{name}", module, name, parameter)
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
    ]
    if loaded_as_by_users(case):
        natural = private("loading order")
        found.sort(key=lambda each: natural(each[0]))
    return [(module, name, parameter) for _, module, name, parameter in found]


def adapt(case: Case, model: Any) -> Any:
    """Wrap the base model with the case's adapters, in train mode, ready for `training_step`."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    checkpointing = {"use_reentrant": case.step.reentrant}
    if case.step.kbit_preparation:
        model = prepare_model_for_kbit_training(
            model, case.step.gradient_checkpointing, checkpointing
        )
    if case.step.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
    fields = case.adapter
    if case.decomposed and next(model.parameters()).is_meta:
        fields = {**fields, "init_lora_weights": True}  # of the same shapes, strides and dtypes
    model = get_peft_model(
        model, LoraConfig(**fields), autocast_adapter_dtype=case.step.autocast_adapter_dtype
    )
    if case.decomposed:
        for layer in model.modules():
            if hasattr(layer, "lora_diag"):  # KaSA's; on meta it would cut at the first forward
                private("pending cuts", layer).clear()
    if case.compute == "float16":
        hold_in_float32(model)
    return model.train()


def quantized_layers(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The base model's bitsandbytes layers, int8 or 4-bit."""
    import sys

    if "bitsandbytes" not in sys.modules:  # nothing was quantized; spare the import
        return
    import bitsandbytes

    kinds = (bitsandbytes.nn.Linear8bitLt, bitsandbytes.nn.Linear4bit)
    yield from (module for module in model.modules() if isinstance(module, kinds))


def count_adapted_layers(model: torch.nn.Module) -> int:
    """The layers that carry an adapter; `modules_to_save` copies are not among them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return sum(isinstance(module, BaseTunerLayer) for module in model.modules())


def quiet_libraries() -> None:
    """Silence notices that are expected here and would drown a progress line."""
    quiet_bitsandbytes()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


_DispatchMode = private("dispatch mode")


class _Draws(_DispatchMode):  # type: ignore[misc, valid-type]  # torch is seen untyped
    """Notes the standard deviation of every normal distribution drawn, by the storage it fills."""

    def __init__(self) -> None:
        super().__init__()
        self.deviations: dict[int, float] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.normal_.default:
            standard = len(args) < 3  # (tensor, mean, deviation), less what has its default
            self.deviations[args[0].untyped_storage()._cdata] = 1.0 if standard else args[2]
            return args[0]  # on meta nothing is drawn, and takes a while
        return func(*args, **(kwargs or {}))


def _weight_deviations(model: Any) -> dict[str, float]:
    """The standard deviation that transformers draws each module's weight with, by module name.

    T5 scales it by each layer's width, GPT-2 by the depth. Found by letting it initialize the meta
    model; a weight that it draws otherwise, or not without memory, is left out.
    """
    with _Draws() as draws, contextlib.suppress(NotImplementedError, RuntimeError):
        model.initialize_weights()
    return {
        name: draws.deviations[storage]
        for name, module in model.named_modules()
        if isinstance(weight := getattr(module, "weight", None), torch.Tensor)
        and (storage := weight.untyped_storage()._cdata) in draws.deviations
    }


def _skipped_modules(case: Case, model: Any) -> list[str]:
    """Modules that stay unquantized: output embeddings and heads, as `from_pretrained` keeps them,
    and what PEFT will train whole, which it cannot do with integer weights."""
    from transformers.quantizers.base import get_keys_to_not_convert

    heads = heads_of(case.adapter.get("task_type"))
    whole = (*heads, *(case.adapter.get("modules_to_save") or ()))
    trained = [name for name, _ in model.named_modules() if name.endswith(whole)] if whole else []
    return [*get_keys_to_not_convert(model), *trained]


def _random_quantized(meta: Any, dtype: torch.dtype, std: float, device: str) -> torch.nn.Parameter:
    """Draw one layer's weight (out features, in features) and quantize it.

    The meta parameter's attributes are bitsandbytes' settings for this layer. A 4-bit layer
    expands to the `dtype` that it was quantized from.
    """
    value = torch.empty(meta.shape, dtype=dtype, device=device).normal_(0.0, std)
    settings = {k: v for k, v in vars(meta).items() if k not in ("CB", "SCB")}
    # `.to(device)` would do, but it leaves an Int8Params alone that is on a GPU already.
    quantized: torch.nn.Parameter = type(meta)(value, requires_grad=False, **settings)._quantize(
        device
    )
    return quantized


def _real_weights(case: Case, config: Any, device: str) -> Any:
    import transformers

    kind = precision(case.precision)
    quantization = None
    if kind.quantized:
        skipped = _skipped_modules(case, meta_model(case, config))
        quantization = bitsandbytes_config(kind, skipped, case.compute)
    trusted = case.code is not None
    with unasked(trusted):
        model, found = getattr(transformers, case.auto_class).from_pretrained(
            case.weights,
            config=config,
            dtype=getattr(torch, case.compute),
            attn_implementation=_attention(case),
            quantization_config=quantization,
            device_map={"": device},
            local_files_only=True,
            use_safetensors=True,  # a pickle could execute anything
            output_loading_info=True,
            # Else transformers looks for one beside the weights, and fails without a config.json.
            generation_config=transformers.GenerationConfig(),
            trust_remote_code=trusted,
        )
    check_loaded(case, model, found["missing_keys"], found["unexpected_keys"])
    return model
