"""A case: everything that decides what one measurement costs, and the id it is stored under; the
same at another batch size, length or rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bench.errors import BenchError, UnknownName, check_most
from bench.files import parse
from bench.models.precision import precision
from bench.tasks import TRAINED, Task
from bench.training.options import (
    DTYPES,
    MEASURED_LENGTH,
    MOST_TOKENS,
    OPTIMIZERS,
    PREDICTED_LENGTH,
    UNNAMED_LENGTH,
    StepOptions,
)

__all__ = [
    "MEASURED_LENGTH",
    "OPTIMIZERS",
    "PREDICTED_LENGTH",
    "UNNAMED_LENGTH",
    "Case",
    "StepOptions",
]


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
    code: str | None = None
    """A local folder whose own code (`auto_map`) builds the model; it is run."""

    def __post_init__(self) -> None:
        precision(self.precision)
        if precision(self.precision).stored:
            self._check_stored()
        if self.step.compute_dtype and precision(self.precision).bits != 4:
            raise BenchError(
                f"--compute-dtype is of 4-bit weights, and the precision is {self.precision}"
            )
        if self.auto_class not in TRAINED:
            raise BenchError(
                f"{self.model}: no training step is known for {self.auto_class}: "
                f"there is one for {', '.join(TRAINED)}"
            )
        if self.task.has_length:
            tokens = self.step.batch_size * self.step.seq_len
            check_most("batch size times length, in tokens,", tokens, MOST_TOKENS)
        if "model_type" not in self.config:
            raise BenchError(f"{self.model}: the config has no model_type")
        rank = self.adapter.get("r", 8)
        if not isinstance(rank, int) or rank < 1:
            raise BenchError(
                f"{self.model}-{self.scenario}: r must be a whole number >= 1: {rank!r}"
            )

    def _check_stored(self) -> None:
        if not isinstance(self.config.get("quantization_config"), Mapping):
            raise BenchError(
                f"--precision {self.precision}: {self.model}'s config.json has no "
                "quantization_config that says how its weights are stored"
            )
        if self.adapter.get("use_dora"):
            raise BenchError(f"{self.model}: DoRA on {self.precision} weights is not predicted")

    @property
    def id(self) -> str:
        """`model-scenario-rRANK-precision`, then the step options that are not the defaults."""
        rank = f"r{self.adapter.get('r', 8)}"
        weights = "real-weights" if self.weights else ""
        parts = (self.model, self.scenario, rank, self.precision, self.step.label(), weights)
        return "-".join(filter(None, parts))

    @property
    def task(self) -> Task:
        """What the model is trained for."""
        return TRAINED[self.auto_class]

    @property
    def compute(self) -> str:
        """torch's name of the dtype of everything that is not quantized, before any preparation,
        and of what quantized weights expand to."""
        given = self.step.compute_dtype
        if given:
            return DTYPES[given]
        kind = precision(self.precision)
        said = self.config.get("dtype") or self.config.get("torch_dtype")
        return str(said) if kind.stored and said in DTYPES.values() else kind.compute

    @property
    def decomposed(self) -> bool:
        """Whether PEFT takes the weights apart before the first step, which on meta it cannot, and
        which leaves every tensor as large as its default does. Of what it refuses it is not said:
        PiSSA takes no quantized weights; nor of KaSA there, which is none."""
        init = str(self.adapter.get("init_lora_weights"))
        cut = init.startswith("pissa") or self.adapter.get("kasa_config") is not None
        return init == "olora" or (cut and not precision(self.precision).quantized)

    @property
    def scales_loss(self) -> bool:
        """Whether a loss scaler has a place: float16 is computed in, under autocast or without."""
        return self.compute == "float16" or self.step.autocast == "fp16"

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe values that `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Case:
        """The case that `to_dict` wrote; raises BenchError on an unknown or missing key."""
        return parse(data, cls, "case")


BATCH_SIZE, SEQ_LEN, RANK = "batch-size", "seq-len", "rank"
SOLVABLE = (BATCH_SIZE, SEQ_LEN, RANK)


def check_has_length(case: Case) -> None:
    """Raise BenchError for images: the model's config fixes their size, there is no length."""
    if not case.task.has_length:
        raise BenchError(f"sequence length: {case.model} takes images, which have none")


def with_value(case: Case, what: str, value: int) -> Case:
    """The case with another batch size, sequence length or rank.

    Raises UnknownName for anything else, and BenchError for the length of images.
    """
    if what == BATCH_SIZE:
        return replace(case, step=replace(case.step, batch_size=value))
    if what == SEQ_LEN:
        check_has_length(case)
        return replace(case, step=replace(case.step, seq_len=value))
    if what == RANK:
        return replace(case, adapter={**case.adapter, "r": value})
    raise UnknownName("value to solve for:", what, SOLVABLE)


def value_of(case: Case, what: str) -> int:
    """The case's own value of `what`."""
    return {
        BATCH_SIZE: case.step.batch_size,
        SEQ_LEN: case.step.seq_len,
        RANK: int(case.adapter.get("r", 8)),
    }.get(what, 1)
