"""One arm in training: deterministic steps, evaluation at fixed ones, what is recorded, and the
rate that it is trained with.

The step is `bench.training.step.training_step`, the same that the project measures. The seed
decides the head's first weights, the adapters', dropout, and the order of the text; at one seed
every arm starts from the same model and sees the same batches.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import transformers

from bench.learning import texts
from bench.learning.arms import FULL, LORA
from bench.learning.records import Fitted, Tuned
from bench.training.cases import Case, StepOptions
from bench.training.cost import CostCounter
from bench.training.loading import adapt, base_model, quantized_layers, quiet_libraries
from bench.training.memory import MemoryTracker
from bench.training.step import make_optimizer, training_step
from bench.training.storages import tag_model, tag_optimizer, tagged_gradients

if TYPE_CHECKING:
    from bench.learning.arms import Arm
    from bench.learning.study import Study
    from bench.learning.texts import Batch, Example

MAX_GRAD_NORM = 1.0
WARMUP_SHARE = 0.1
"""Share of the steps over which the rate rises; then it falls linearly, to nothing after the last.
Tuning stops early on the same schedule."""
_TRACKED = 2  # steps whose memory is followed: in the second the optimizer's state is there


class LossDiverged(ArithmeticError):
    """The training loss is no number any more; holds the step."""


def case_of(study: Study, arm: Arm, seed: int) -> Case:
    """The arm as a case of the project's own loading: the base model of it alone."""
    settings = study.settings
    model = study.model  # with the words that the weights have; `grow` adds the new ones
    return Case(
        model=model.label,
        config=dict(model.config),
        auto_class=model.task_class,
        scenario=arm.name,
        adapter=arm.adapter.to_dict() if arm.adapter else {},
        precision=arm.precision,
        step=StepOptions(settings.batch_size, settings.length, seed=seed),
        weights=str(study.weights),
    )


def load_arm(study: Study, arm: Arm, seed: int) -> Any:
    """The arm's model, ready to train."""
    quiet_libraries()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="peft")  # of tied words: `bench targets` tells it
    case = case_of(study, arm, seed)
    _, model = base_model(case, study.device)
    if arm.shift:
        grow(model, study.shifted.new_tokens)
    torch.manual_seed(seed)
    if arm.kind == LORA:
        model = adapt(case, model)
    else:
        names = trained_names(model, arm)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(names is None or name in names)
    for layer in quantized_layers(model):
        # bitsandbytes packs 4-bit weights at the first evaluation on a CPU, for good: then it has
        # no gradient any more (0.50; AVX512-BF16 alone).
        layer.support_avx512bf16_for_cpu = False
    torch.manual_seed(seed)
    return model.train()


def trained_names(model: Any, arm: Arm) -> set[str] | None:
    """The parameters that an arm without adapters trains, None for all. A head that is tied to the
    embeddings becomes a copy of its own first, as `modules_to_save` would make one."""
    if arm.kind == FULL:
        return None
    head = model.get_output_embeddings()
    if head is None:  # a classifier's head is what has no counterpart in the base model
        base = f"{model.base_model_prefix}."
        return {name for name, _ in model.named_parameters() if not name.startswith(base)}
    embeddings = model.get_input_embeddings()
    if head.weight is embeddings.weight:
        head.weight = torch.nn.Parameter(embeddings.weight.detach().clone())
    return {name for name, p in model.named_parameters(remove_duplicate=False) if p is head.weight}


def grow(model: Any, count: int) -> None:
    """Add `count` words, all alike: each starts from the mean of the words that there are, and a
    hundredth of their spread to tell them apart."""
    old = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(old + count, mean_resizing=False)
    generator = torch.Generator().manual_seed(0)
    head = model.get_output_embeddings()
    tables = {id(t.weight): t.weight for t in (model.get_input_embeddings(), head) if t is not None}
    with torch.no_grad():
        for weight in tables.values():
            known = weight[:old].float()
            noise = torch.randn(count, weight.shape[1], generator=generator).to(weight.device)
            weight[old:] = (known.mean(0) + 0.01 * known.std(0) * noise).to(weight.dtype)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without dropout and gradients."""
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train()


class ArmFit:
    """One arm at one rate and seed, trained as far as it is asked to."""

    def __init__(self, study: Study, arm: Arm, rate: float, seed: int) -> None:
        settings = study.settings
        self.study, self.arm, self.rate, self.seed = study, arm, rate, seed
        self.material = study.material(arm)
        self.model = load_arm(study, arm, seed)
        self.options = StepOptions(
            settings.batch_size, settings.length, learning_rate=rate, max_grad_norm=MAX_GRAD_NORM
        )
        self.optimizer = make_optimizer(self.model, self.options)
        self.batches = texts.batches(
            self.material.train, settings.batch_size, settings.steps, seed, self.material.pad
        )
        self.step = 0
        self.tokens = 0
        self.seconds: list[float] = []
        self.gradient_norms: dict[str, float] = {}
        self.peak_allocated_bytes: int | None = None
        self.flops: float | None = None

    def train_to(self, step: int) -> None:
        """Train until `step` steps are done. Raises Diverged."""
        while self.step < step:
            self._train(self.batches[self.step])

    def _train(self, batch: Batch) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * self._share()
        batch = self._placed(batch)
        begun = self._clock()
        loss = training_step(
            self.model, batch, self.optimizer, mark=self._mark, options=self.options
        )
        self.seconds.append(self._clock() - begun)
        self.tokens += int(batch["attention_mask"].sum())
        self.step += 1
        if not math.isfinite(float(loss)):
            raise LossDiverged(self.step)

    def _clock(self) -> float:
        """Seconds: the processor's, which other processes do not lengthen; on a GPU the wall's."""
        if self.study.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.study.device)
        return time.perf_counter()

    def _share(self) -> float:
        steps = self.study.settings.steps
        rise = max(1, round(WARMUP_SHARE * steps))
        return min((self.step + 1) / rise, (steps - self.step) / steps)

    def _placed(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.study.device) for name, tensor in batch.items()}

    def _mark(self, phase: str) -> None:
        if phase == "optimizer" and not self.gradient_norms:
            self.gradient_norms = norms_by_role(self.model, self.study.model.role_of)

    def follow_memory(self) -> None:
        """Train the first two steps with every storage and operation followed: slower."""
        tracker = MemoryTracker(device=torch.device(self.study.device).type)
        tag_model(tracker.storages, self.model)
        with tagged_gradients(tracker.storages, self.model):
            for number in range(_TRACKED):
                tracker.observer = cost = CostCounter()
                tracker.storages.reset_peak()
                with tracker:
                    self._train(self.batches[self.step])
                tag_optimizer(tracker.storages, self.optimizer)
                if number == _TRACKED - 1:
                    self.peak_allocated_bytes = tracker.storages.peak_bytes
                    self.flops = float(cost.flops)
        self.seconds.clear()

    def loss_on(self, examples: Sequence[Example]) -> float:
        """Mean loss (nats) over texts, or over the tokens that a language model has to foretell."""
        total, counted = 0.0, 0
        with evaluating(self.model):
            for batch in self._evaluation(examples):
                labels = batch["labels"]
                target = labels if labels.dim() == 1 else labels[:, 1:]
                count = int((target != texts.IGNORED_LABEL).sum())
                total += float(self.model(**self._placed(batch)).loss) * count
                counted += count
        return total / counted

    def _evaluation(self, examples: Sequence[Example]) -> list[Batch]:
        size = 2 * self.study.settings.batch_size
        return texts.in_order(examples, size, self.material.pad)

    def outside(self) -> list[torch.Tensor] | float | None:
        """What the model makes of the text of another kind: its loss on it (a language model), or
        the texts' embeddings, of unit length (a classifier, which has no loss there)."""
        if not self.material.other:
            return None
        if not self.material.labels:
            return self.loss_on(self.material.other)
        found = []
        with evaluating(self.model):
            for batch in self._evaluation(self.material.other):
                placed = self._placed({k: v for k, v in batch.items() if k != "labels"})
                hidden = self.model(**placed, output_hidden_states=True).hidden_states[-1].float()
                mask = placed["attention_mask"][..., None]
                mean = (hidden * mask).sum(1) / mask.sum(1)
                found.append(torch.nn.functional.normalize(mean, dim=-1))
        return found


def drift(before: list[torch.Tensor] | float | None, after: Any) -> float | None:
    """What was forgotten: nats that the loss on the other text has risen by, or one less the mean
    cosine between its embeddings before and after."""
    if before is None:
        return None
    if isinstance(before, float):
        return float(after) - before
    cosines = torch.cat([(b * a).sum(-1) for b, a in zip(before, after, strict=True)])
    return float(1 - cosines.mean())


def norms_by_role(model: Any, role_of: Any) -> dict[str, float]:
    """The norm of the gradients that there are, by the role of the module that they belong to."""
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        module = name.removeprefix("base_model.model.").partition(".lora_")[0]
        module = module.partition(".modules_to_save.")[0].removesuffix(".weight")
        role = role_of(module.removesuffix(".bias").removesuffix(".base_layer"))
        squares[role] = squares.get(role, 0.0) + float(parameter.grad.float().pow(2).sum())
    return {role: math.sqrt(square) for role, square in sorted(squares.items())}


_BEFORE: dict[tuple[Any, ...], tuple[float, Any]] = {}


def fit_arm(study: Study, arm: Arm, rate: float, seed: int, *, follow: bool = False) -> Fitted:
    """Train the arm to the end, with evaluations; a loss that is no number ends it, recorded."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings = study.settings
    one = ArmFit(study, arm, rate, seed)
    evaluation = one.material.evaluation
    # Adapters start without effect: what is evaluated at step 0 is the base model, once a seed.
    key = (study.name, study.weights, study.plain.digest, seed, arm.precision, arm.shift)
    if key not in _BEFORE:
        _BEFORE[key] = (one.loss_on(evaluation), one.outside())
    first, before = _BEFORE[key]
    losses, diverged, forgetting = {0: first}, 0, None
    torch.manual_seed(seed)
    try:
        if follow:
            one.follow_memory()
        for step in settings.evaluate_at:
            if step:
                one.train_to(step)
                losses[step] = one.loss_on(evaluation)
        forgetting = drift(before, one.outside())
    except LossDiverged as error:
        diverged = int(error.args[0])
    if not all(map(math.isfinite, losses.values())):
        diverged = diverged or max(losses)
    seconds = sorted(one.seconds)
    return Fitted(
        seed, rate, losses, forgetting, one.tokens, one.gradient_norms,
        seconds[len(seconds) // 2] if seconds else 0.0,
        one.peak_allocated_bytes, one.flops, diverged,
    )  # fmt: skip


FIRST_SEED = 1000
"""Of tuning: no seed of a compared run."""


def tune(study: Study, arm: Arm, seed: int = FIRST_SEED) -> Tuned:
    """The rate among the arm's own, by successive halving on the held-back part. Of equal ones the
    smaller; where all diverge the smallest.

    K. Jamieson, A. Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
    Optimization", AISTATS 2016: every rate is trained for a few steps, the better ones go on. The
    rates are half a decade apart, so that the best is known to within that.
    """
    settings = study.settings
    held_back = study.material(arm).held_back
    running = {rate: ArmFit(study, arm, rate, seed) for rate in arm.rates}
    losses: dict[float, dict[int, float]] = {rate: {} for rate in arm.rates}
    for step, kept in zip(settings.rungs, settings.kept, strict=True):
        for rate, one in running.items():
            try:
                one.train_to(step)
                loss = one.loss_on(held_back)
            except LossDiverged:
                loss = math.inf
            losses[rate][step] = loss if math.isfinite(loss) else math.inf
        best = sorted(running, key=lambda rate: (losses[rate][step], rate))[:kept]
        running = {rate: running[rate] for rate in running if rate in best}
        if all(math.isinf(losses[rate][step]) for rate in best):
            return Tuned(min(arm.rates), losses)
    return Tuned(best[0], losses)
