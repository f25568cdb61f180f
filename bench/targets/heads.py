"""Task heads that a configuration leaves frozen: what a class adds beyond its base model."""

from __future__ import annotations

import re

from bench.models.modules import CONV1D, CONVOLUTIONS, LINEAR
from bench.targets.ledger import Ledger
from bench.targets.refusals import owner_of
from bench.tasks import TASKS, Task

# Heads that the pretraining trained: they come with the checkpoint.
_PRETRAINED = re.compile(r"ForCausalLM|ForMaskedLM|LMHead|ForConditionalGeneration|ForPreTraining"
                         r"|ForNextSentencePrediction|ForMaskedImageModeling")  # fmt: skip
_NAMES = ("classifier", "score", "qa_outputs", "pre_classifier")


def frozen_heads(ledger: Ledger) -> list[str]:
    """Names of the modules with weights beyond the base model that get neither an adapter nor a
    trained copy; where the base model is not known, of those called as heads are."""
    table = ledger.table
    trained = {owner_of(item) for item in ledger.adapted} | set(ledger.saved)
    fresh = bool(table.base_model) and not _PRETRAINED.search(table.class_name)
    known = {table.output_embedding, *table.tied} if table.tied else set()
    return [
        m.name
        for m in table.modules
        if m.kind in (LINEAR, CONV1D, *CONVOLUTIONS)
        and (
            m.name.partition(".")[0] in _NAMES
            or (fresh and m.name not in known and not m.name.startswith(f"{table.base_model}."))
        )
        and not any(m.name == t or m.name.startswith(f"{t}.") for t in trained)
    ]


def frozen_head_text(class_name: str, heads: list[str], task_type: str | None) -> str:
    """What stays frozen, and what trains it: the task type only where PEFT's would."""
    tasks = (t for t in TASKS if t.heads and class_name.endswith(t.class_ending))
    task = next(tasks, None)
    offer = "name it in modules_to_save"
    if task and task.task_type != task_type and all(_saves(task, name) for name in heads):
        offer = f"give the task type {task.task_type}, or {offer}"
    parts = list(dict.fromkeys(name.partition(".")[0] for name in heads))
    shown = heads if len(heads) <= 3 else parts
    return (
        f"{', '.join(shown)}: beyond the base model, newly initialised unless the checkpoint holds "
        f"it, and stays frozen; {offer}"
    )


def _saves(task: Task, name: str) -> bool:
    """Whether PEFT's task type trains the module: it, or one around it, ends in a head's name."""
    parts = name.split(".")
    around = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
    return any(outer.endswith(task.heads) for outer in around)
