"""Which class builds a model type: the most telling that transformers has for it.

The first in `PREFERENCE` that takes the type (an encoder-decoder or a model with vision whole
rather than its text decoder alone) or any other task class; else the base model; else, for a part
of a larger model that no auto class gives, the class in its own module.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

CAUSAL_LM = "AutoModelForCausalLM"
PREFERENCE = tuple(
    f"AutoModelFor{task}"
    for task in """Seq2SeqLM SpeechSeq2Seq ImageTextToText MultimodalLM Vision2Seq CausalLM MaskedLM
    CTC RNNT TDT ImageClassification AudioClassification VideoClassification ObjectDetection
    InstanceSegmentation UniversalSegmentation SemanticSegmentation DepthEstimation MaskGeneration
    ZeroShotImageClassification ZeroShotObjectDetection TextToSpectrogram TextToWaveform
    AudioTokenization SequenceClassification TokenClassification QuestionAnswering
    DocumentQuestionAnswering VisualQuestionAnswering""".split()
)
# These tell less of a type than its base model does.
_GENERIC = ("AutoBackbone", "AutoModelForPreTraining", "AutoModelForTextEncoding",
            "AutoModelForMultipleChoice", "AutoModelForNextSentencePrediction")  # fmt: skip
_MODELLING = ("modeling_", "vision", "perceiver")  # the last two are IDEFICS's
_OTHER_FRAMEWORKS = ("modeling_tf_", "modeling_flax_")


def choose(model_type: str) -> str:
    """The auto class for a type; "" when no auto class takes it."""
    from transformers.models.auto import modeling_auto

    tasks = sorted(n for n in dir(modeling_auto) if n.startswith("AutoModelFor"))
    others = [n for n in tasks if n not in _GENERIC]
    order = (*PREFERENCE, *others, "AutoModel", *_GENERIC)
    return next((name for name in order if takes(name, model_type)), "")


def takes(auto_class: str, model_type: str) -> bool:
    """Whether an auto class builds this type."""
    from transformers.models.auto import modeling_auto

    found = getattr(modeling_auto, auto_class, None)
    mapping = getattr(found, "_model_mapping", None)
    return mapping is not None and model_type in mapping._model_mapping


def own_class(config: Any) -> Any:
    """The class written for exactly this configuration, in the package that defines it: a model if
    there is one, else a part of a model that takes this configuration alone; None if neither."""
    from torch import nn

    package = importlib.import_module(type(config).__module__.rpartition(".")[0])
    models: list[Any] = []
    parts: list[Any] = []
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith(_MODELLING) or info.name.startswith(_OTHER_FRAMEWORKS):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, value in vars(module).items():
            if not isinstance(value, type) or value.__module__ != module.__name__:
                continue
            if not issubclass(value, nn.Module) or name.endswith("PreTrainedModel"):
                continue
            if getattr(value, "config_class", None) is type(config):
                models.append(value)
            elif _wanted_config(value) == type(config).__name__:
                parts.append(value)
    # What holds the others is written below them.
    return (models or parts or [None])[-1]


def _wanted_config(module_class: Any) -> str:
    """The name of the configuration class that builds a module, when nothing else is needed."""
    _, *given = inspect.signature(module_class.__init__).parameters.values()
    required = [p for p in given if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if [p.name for p in required] != ["config"]:
        return ""
    annotation = required[0].annotation
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
