"""What models are trained for: everything that a task decides, a row each.

Sources: transformers' `modeling_auto.py` for the classes; peft 0.21 `peft_model.py` for the task
types and the heads that they train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TOKENS, IMAGES, AUDIO = "tokens", "images", "audio"


@dataclass(frozen=True)
class Task:
    """One thing that a model is trained for.

    auto_class: transformers' auto class, and mapping: the name in transformers' `modeling_auto` of
    its table of model types, before `_MAPPING_NAMES`.
    task_type: PEFT's; None where PEFT has none.
    heads: the ends of the names of modules that PEFT trains whole for the task type.
    unnamed_heads: new heads that no task type trains, so that a configuration has to name them;
    which of them a model has is the model's own (BART's is `classification_head`).
    pretrained: whether the head comes with the checkpoint.
    inputs: what one example is: TOKENS, IMAGES or AUDIO; and texts: how many texts it is, where the
    model chooses between some.
    other_towers: whether its models have towers that a language model's class would leave out.
    labels: what it is trained towards, in words of `training.step.make_batch`; "" where no step is
    written for the task.
    """

    name: str
    auto_class: str
    mapping: str
    task_type: str | None = None
    heads: tuple[str, ...] = ()
    unnamed_heads: tuple[str, ...] = ()
    pretrained: bool = False
    inputs: str = TOKENS
    texts: int = 1
    other_towers: bool = False
    labels: str = ""

    @property
    def has_length(self) -> bool:
        """Whether an example is a sequence, of a length that is chosen; images have none."""
        return self.inputs != IMAGES

    @property
    def label_heads(self) -> tuple[str, ...]:
        """The names of its heads, where they are new and have a row for each label."""
        new = self.labels in ("a class", "a class a token", "a span", "a choice")
        return (*self.heads, *self.unnamed_heads) if new else ()

    @property
    def class_ending(self) -> str:
        """How the names of its model classes end: `ForCausalLM`."""
        return self.auto_class.removeprefix("AutoModel")


# A model's class is looked for from the top down.
TASKS = (
    Task("causal-lm", "AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM", "CAUSAL_LM",
         pretrained=True, labels="the same tokens"),
    Task("seq2seq", "AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM", "SEQ_2_SEQ_LM",
         pretrained=True, labels="other tokens"),
    Task("masked-lm", "AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM", pretrained=True,
         labels="masked tokens"),
    Task("sequence-classification", "AutoModelForSequenceClassification",
         "MODEL_FOR_SEQUENCE_CLASSIFICATION", "SEQ_CLS",
         heads=("classifier", "score"),
         unnamed_heads=("classification_head", "logits_proj", "sequence_summary"),
         labels="a class"),
    Task("token-classification", "AutoModelForTokenClassification",
         "MODEL_FOR_TOKEN_CLASSIFICATION", "TOKEN_CLS",
         heads=("classifier", "score"), labels="a class a token"),
    Task("question-answering", "AutoModelForQuestionAnswering", "MODEL_FOR_QUESTION_ANSWERING",
         "QUESTION_ANS", heads=("qa_outputs",), labels="a span"),
    Task("multiple-choice", "AutoModelForMultipleChoice", "MODEL_FOR_MULTIPLE_CHOICE",
         unnamed_heads=("classifier", "logits_proj", "sequence_summary"), texts=4,
         labels="a choice"),
    Task("image-classification", "AutoModelForImageClassification",
         "MODEL_FOR_IMAGE_CLASSIFICATION",
         unnamed_heads=("classifier",), inputs=IMAGES, labels="a class"),
    Task("image-text-to-text", "AutoModelForImageTextToText", "MODEL_FOR_IMAGE_TEXT_TO_TEXT",
         pretrained=True, other_towers=True, labels="the same tokens"),
    Task("speech-seq2seq", "AutoModelForSpeechSeq2Seq", "MODEL_FOR_SPEECH_SEQ_2_SEQ",
         pretrained=True, inputs=AUDIO, other_towers=True, labels="a transcript"),
    Task("ctc", "AutoModelForCTC", "MODEL_FOR_CTC",
         unnamed_heads=("lm_head",), inputs=AUDIO, labels="a transcript"),
    Task("audio-classification", "AutoModelForAudioClassification",
         "MODEL_FOR_AUDIO_CLASSIFICATION",
         unnamed_heads=("classifier",), inputs=AUDIO, labels="a class"),
    Task("feature-extraction", "AutoModel", "MODEL", "FEATURE_EXTRACTION", labels="pairs"),
)  # fmt: skip

BY_CLASS: Mapping[str, Task] = {task.auto_class: task for task in TASKS}
BY_TYPE: Mapping[str, Task] = {task.task_type: task for task in TASKS if task.task_type}
TRAINED: Mapping[str, Task] = {task.auto_class: task for task in TASKS if task.labels}
"""The tasks that a step is written for, by auto class."""


def heads_of(task_type: str | None) -> tuple[str, ...]:
    """The modules that PEFT's task type trains whole, beside the adapter."""
    task = BY_TYPE.get(task_type or "")
    return task.heads if task else ()
