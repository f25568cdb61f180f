"""A case: everything that decides what one measurement costs, and the id it is stored under."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from bench.errors import BenchError, UnknownName, check_keys
from bench.models.precision import precision

OPTIMIZERS = ("adamw", "adamw-fused", "adamw-foreach", "adamw-8bit", "paged-adamw-8bit")
ATTENTION = ("sdpa", "eager")
UNNAMED_LENGTH = 64
"""Tokens in a sequence of a case whose id names no length: an id under which figures are stored
can only be read with this number, so it stays."""
MEASURED_LENGTH = 32
"""Tokens where a step is measured and no length is asked for: short enough for a CPU."""
PREDICTED_LENGTH = 512
"""Tokens where a step is predicted and no length is asked for: what people train with."""
TASKS: Mapping[str, str] = {
    "AutoModelForCausalLM": "causal-lm",
    "AutoModelForSequenceClassification": "sequence-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForSeq2SeqLM": "seq2seq",
    "AutoModelForImageClassification": "image-classification",
}
"""transformers' auto class -> the task whose step it trains."""


@dataclass(frozen=True)
class StepOptions:
    """The parameters of one training step. Dropout is as the model's and the adapter's configs say.

    `seq_len` counts tokens (images ignore it); `padded` pads every sequence but the first on the
    right; `kbit_preparation` runs PEFT's `prepare_model_for_kbit_training`, which holds every
    weight that is not quantized in float32. Raises BenchError on a value out of range.
    """

    batch_size: int = 2
    seq_len: int = UNNAMED_LENGTH
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    gradient_checkpointing: bool = False
    padded: bool = False
    attention: str = "sdpa"
    seed: int = 0
    kbit_preparation: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "seq_len"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise BenchError(
                    f"step option {name}: expected a whole number >= 1, found {value!r}"
                )
        if self.optimizer not in OPTIMIZERS:
            raise UnknownName("optimizer", self.optimizer, OPTIMIZERS)
        if self.attention not in ATTENTION:
            raise UnknownName("attention", self.attention, ATTENTION)

    def label(self) -> str:
        """The options that differ from the defaults, joined by dashes; empty when none does."""
        parts = {
            "batch_size": f"b{self.batch_size}",
            "seq_len": f"s{self.seq_len}",
            "optimizer": self.optimizer,
            "learning_rate": f"lr{self.learning_rate:g}",
            "gradient_checkpointing": "checkpointed",
            "padded": "padded",
            "attention": self.attention,
            "seed": f"seed{self.seed}",
            "kbit_preparation": "kbit",
        }
        return "-".join(parts[f.name] for f in fields(self) if getattr(self, f.name) != f.default)


@dataclass(frozen=True)
class Case:
    """One thing to measure: a model, how it is adapted, its precision and the step.

    `config` holds config.json values, `model_type` among them; `adapter` holds keyword arguments
    of `peft.LoraConfig`, `task_type` included; `weights` names a folder of real weights, None for
    random ones from the seed. `model` and `scenario` are labels: they must tell apart what
    `config` and `adapter` do, since the id is made of them. Raises BenchError.
    """

    model: str
    config: dict[str, Any]
    auto_class: str
    scenario: str
    adapter: dict[str, Any]
    precision: str
    step: StepOptions = field(default_factory=StepOptions)
    weights: str | None = None

    def __post_init__(self) -> None:
        precision(self.precision)
        if self.auto_class not in TASKS:
            raise UnknownName("auto class", self.auto_class, TASKS)
        if "model_type" not in self.config:
            raise BenchError(f"{self.model}: the config has no model_type")
        rank = self.adapter.get("r", 8)
        if not isinstance(rank, int) or rank < 1:
            raise BenchError(
                f"{self.model}-{self.scenario}: r must be a whole number >= 1: {rank!r}"
            )

    @property
    def id(self) -> str:
        """`model-scenario-rRANK-precision`, then the step options that are not the defaults."""
        rank = f"r{self.adapter.get('r', 8)}"
        weights = "real-weights" if self.weights else ""
        parts = (self.model, self.scenario, rank, self.precision, self.step.label(), weights)
        return "-".join(filter(None, parts))

    @property
    def task(self) -> str:
        """What the model is trained for, e.g. "causal-lm"."""
        return TASKS[self.auto_class]

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe values that `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Case:
        """The case that `to_dict` wrote; raises BenchError on an unknown or missing key."""
        names = {f.name for f in fields(cls)}
        check_keys(data, "case", names, names - {"step", "weights"})
        step = data.get("step", {})
        check_keys(step, "case step", {f.name for f in fields(StepOptions)})
        return cls(**{**data, "step": StepOptions(**step)})
