"""Texts: where they come from, how they are split, and the batches that an arm is trained on.

A text's split is decided by its own SHA-256, so that it is the same on every machine and whatever
else the corpus holds, and no text is in two: equal texts (case and white space apart) are one.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.compat import unasked
from bench.errors import BenchError, lookup
from bench.files import read_text
from bench.learning.packages import package
from bench.units import one_line

if TYPE_CHECKING:
    import torch

TRAIN, HELD_BACK, EVALUATION = "train", "held-back", "evaluation"
SHARES = ((EVALUATION, 20), (HELD_BACK, 35), (TRAIN, 100))
"""Below these hundredths of the hash a text is in that split: 20 %, 15 % and 65 %."""
IGNORED_LABEL = -100
Batch = dict[str, Any]


@dataclass(frozen=True)
class Text:
    """One text; a label where it is to be classified."""

    text: str
    label: str | None = None

    @property
    def hash(self) -> str:
        return hashlib.sha256(" ".join(self.text.lower().split()).encode()).hexdigest()

    @property
    def split(self) -> str:
        place = int(self.hash[:8], 16) % 100
        return next(name for name, below in SHARES if place < below)


@dataclass(frozen=True)
class Example:
    """A text as tokens. label: its class, None for a language model."""

    ids: tuple[int, ...]
    label: int | None = None


@dataclass(frozen=True)
class Material:
    """Everything that an arm sees. `other` is text of another kind: what is forgotten shows there.
    `labels` are the classes (none for a language model), `digest` is of all that follows."""

    train: tuple[Example, ...]
    held_back: tuple[Example, ...]
    evaluation: tuple[Example, ...]
    other: tuple[Example, ...]
    labels: tuple[str, ...] = ()
    pad: int = 0
    new_tokens: int = 0

    @property
    def digest(self) -> str:
        parts = (self.train, self.held_back, self.evaluation, self.other, self.labels)
        plain = [[(e.ids, e.label) for e in part] for part in parts[:4]]
        return hashlib.sha256(json.dumps([plain, self.labels]).encode()).hexdigest()[:16]


# --- sources --------------------------------------------------------------------------------------


def dialogue(topics: int | None = None, most: int | None = None) -> list[Text]:
    """chatterbot-corpus' English sentences, the topic as their label; those that several topics
    have are left out.

    topics: so many, those with the most texts; most: of each so many, the first by their hash.
    """
    import yaml

    folder = package("chatterbot-corpus").folder() / "data" / "english"
    found: dict[str, Text] = {}
    topics_of: dict[str, set[str]] = {}
    for path in sorted(folder.glob("*.yml")):
        for exchange in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            for line in exchange:
                if isinstance(line, str) and line.strip():
                    text = Text(line.strip(), path.stem)
                    found.setdefault(text.hash, text)
                    topics_of.setdefault(text.hash, set()).add(path.stem)
    texts = [found[key] for key in sorted(found) if len(topics_of[key]) == 1]
    sizes = Counter(str(text.label) for text in texts)
    kept = {
        name for name, _ in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:topics]
    }
    taken: Counter[str] = Counter()
    chosen = []
    for text in texts:
        if (label := str(text.label)) in kept and (most is None or taken[label] < most):
            taken[label] += 1
            chosen.append(text)
    return chosen


def prose() -> list[Text]:
    """The paragraphs of Python's own reference topics: English technical prose, and its syntax."""
    from pydoc_data.topics import topics

    paragraphs = (p for name in sorted(topics) for p in topics[name].split("\n\n"))
    found = {text.hash: text for p in paragraphs if len(p.split()) >= 8 for text in [Text(p)]}
    return list(found.values())


SOURCES: dict[str, Callable[..., list[Text]]] = {"dialogue": dialogue, "prose": prose}
"""By the name that a study calls them."""


def from_source(values: Mapping[str, Any]) -> list[Text]:
    """The texts of the source that a study names, by its other values. Raises UnknownName."""
    given = dict(values)
    name = given.pop("source")
    return lookup("source of text", name, SOURCES)(**given)


def tokenizer_of(folder: Path, text: Sequence[Text]) -> Any:
    """The tokenizer beside a model's weights. Raises BenchError where it cannot be loaded, or knows
    no word of the text: where its files are missing, transformers may make an empty one."""
    from transformers import AutoTokenizer

    try:
        with unasked():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # the files are anybody's, and fail in any way
        if "trust_remote_code" in str(error):
            raise BenchError(
                f"{folder}: its tokenizer needs code of its own (auto_map in "
                "tokenizer_config.json), which is not run here"
            ) from None
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise BenchError(f"{folder}: its tokenizer cannot be loaded: {first}") from None
    special = set(tokenizer.all_special_ids)
    if all(special.issuperset(tokenizer(one.text)["input_ids"]) for one in text):
        raise BenchError(
            f"{folder}: its tokenizer knows no word of the text: is the tokenizer's file "
            "(tokenizer.json or the like) not there, or another's?"
        )
    return tokenizer


def read_data(path: Path) -> list[Text]:
    """A user's texts. `.txt`: paragraphs, for a language model; `.jsonl` and `.csv`: `text`, and
    `label` where it is to be classified. BenchError, naming the line, for anything else."""
    content = read_text(path, "--data")
    kind = path.suffix.lower()
    if kind == ".txt":
        texts = [Text(part.strip()) for part in content.split("\n\n") if part.strip()]
    elif kind == ".jsonl":
        texts = [_of(_json(line, path, n), path, n)
                 for n, line in enumerate(content.splitlines(), 1) if line.strip()]  # fmt: skip
    elif kind == ".csv":
        rows = csv.DictReader(content.splitlines())
        texts = [_of(row, path, n) for n, row in enumerate(rows, 2)]
    else:
        raise BenchError(f"--data {path}: expected a file .txt, .jsonl or .csv")
    if not texts:
        raise BenchError(f"--data {path}: it holds no text")
    if len({text.label is None for text in texts}) > 1:
        raise BenchError(f"--data {path}: some texts have a label and some have none")
    return list({text.hash: text for text in texts}.values())


def _json(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise BenchError(f"--data {path}: line {number} is not JSON") from None


def _of(row: Any, path: Path, number: int) -> Text:
    text = row.get("text") if isinstance(row, dict) else None
    if text is None:
        raise BenchError(f'--data {path}: line {number} has no "text"')
    if not isinstance(text, str) or not text.strip():
        shown = one_line(json.dumps(text))[:40]
        raise BenchError(f'--data {path}: line {number}: "text" is {shown}, and no text')
    label = row.get("label")
    return Text(text, None if label in (None, "") else str(label))


# --- material -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """Of texts: tokens of an example, and at most so many examples of what is evaluated (those of
    the smallest hashes)."""

    length: int
    held_back: int
    evaluation: int
    other: int


def classified(
    texts: Sequence[Text], other: Sequence[Text], tokenizer: Any, sizes: Sizes, where: str
) -> Material:
    """Texts to classify, each cut to its length."""
    labels = tuple(sorted({str(text.label) for text in texts}))
    if len(labels) < 2:
        raise BenchError(f"{where}: a classification needs at least two labels, not {len(labels)}")

    def examples(chosen: Iterable[Text], most: int | None = None) -> tuple[Example, ...]:
        return tuple(
            Example(_ids(tokenizer, t.text, sizes.length), labels.index(t.label) if t.label else 0)
            for t in sorted(chosen, key=lambda text: text.hash)[:most]
        )

    return Material(
        examples(part(texts, TRAIN)),
        examples(part(texts, HELD_BACK), sizes.held_back),
        examples(part(texts, EVALUATION), sizes.evaluation),
        examples((replace(text, label=None) for text in other), sizes.other),
        labels,
        _pad(tokenizer),
    )


def part(texts: Iterable[Text], split: str) -> list[Text]:
    """The texts of a split."""
    return [text for text in texts if text.split == split]


def continued(
    texts: Sequence[Text], other: Sequence[Text], tokenizer: Any, sizes: Sizes, where: str
) -> Material:
    """Texts for a language model: those of a split behind one another, cut in equal pieces."""
    length, end = sizes.length, tokenizer.eos_token_id
    if length < 2:
        raise BenchError("--seq-len 1: a language model foretells each token from those before it")
    if end is None:
        raise BenchError(
            f"{tokenizer.name_or_path}: its tokenizer has no eos token, which ends each text of a "
            "language model: name one (eos_token in tokenizer_config.json)"
        )

    def pieces(chosen: Iterable[Text], most: int | None = None) -> tuple[Example, ...]:
        stream: list[int] = []
        for text in sorted(chosen, key=lambda text: text.hash):
            if most is not None and len(stream) >= most * length:
                break
            stream += [*tokenizer(text.text, add_special_tokens=False)["input_ids"], end]
        whole = range(0, len(stream) - length + 1, length)[:most]
        return tuple(Example(tuple(stream[i : i + length])) for i in whole)

    limits = {TRAIN: None, HELD_BACK: sizes.held_back, EVALUATION: sizes.evaluation}
    parts = {name: pieces(part(texts, name), most) for name, most in limits.items()}
    for name, found in parts.items():
        if not found:
            raise BenchError(f"{where}: the {name} part is shorter than {length} tokens")
    train, held_back, evaluation = (parts[name] for name in limits)
    outside = pieces(other, sizes.other)
    return Material(train, held_back, evaluation, outside, (), _pad(tokenizer))


def _ids(tokenizer: Any, text: str, length: int) -> tuple[int, ...]:
    return tuple(tokenizer(text, truncation=True, max_length=length)["input_ids"])


def _pad(tokenizer: Any) -> int:
    return int(tokenizer.pad_token_id or 0)


def checked(material: Material, batch_size: int, where: str) -> Material:
    """BenchError where a part is empty, or there is not one batch to train on."""
    if len(material.train) < batch_size:
        raise BenchError(
            f"{where}: {len(material.train)} examples to train on, less than one batch of "
            f"{batch_size}"
        )
    for name in ("held_back", "evaluation"):
        if not getattr(material, name):
            raise BenchError(f"{where}: no example in the {name.replace('_', '-')} part")
    return material


def shifted(material: Material, vocabulary: int, count: int) -> Material:
    """The same with new words: the `count` tokens that the training part has most often are called
    by ids behind the vocabulary, of which the model has learned nothing. The text of another kind
    keeps its words."""
    seen = Counter(i for example in material.train for i in example.ids if i != material.pad)
    common = sorted(seen, key=lambda i: (-seen[i], i))[:count]
    new = {old: vocabulary + place for place, old in enumerate(common)}

    def renamed(part: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(replace(e, ids=tuple(new.get(i, i) for i in e.ids)) for e in part)

    return replace(
        material,
        train=renamed(material.train),
        held_back=renamed(material.held_back),
        evaluation=renamed(material.evaluation),
        new_tokens=len(new),
    )


# --- batches --------------------------------------------------------------------------------------


def batches(examples: Sequence[Example], size: int, count: int, seed: int, pad: int) -> list[Batch]:
    """`count` training batches, drawn without repetition until all have been seen. The same for
    every arm with this seed."""
    draw = random.Random(seed)
    order: list[Example] = []
    while len(order) < size * count:
        order += draw.sample(list(examples), len(examples))
    parts = (order[start * size : (start + 1) * size] for start in range(count))
    return [collate(sorted(part, key=lambda e: len(e.ids)), pad) for part in parts]


def in_order(examples: Sequence[Example], size: int, pad: int) -> list[Batch]:
    """Everything once, the short texts first: for evaluation."""
    ordered = sorted(examples, key=lambda e: len(e.ids))
    return [collate(ordered[i : i + size], pad) for i in range(0, len(ordered), size)]


def collate(examples: Sequence[Example], pad: int) -> Batch:
    """A batch as a model takes it: ids and mask (b, s), labels (b,) or, for a language model,
    (b, s)."""
    import torch

    longest = max(len(e.ids) for e in examples)
    ids = torch.tensor([[*e.ids, *[pad] * (longest - len(e.ids))] for e in examples])
    mask = torch.tensor([[1] * len(e.ids) + [0] * (longest - len(e.ids)) for e in examples])
    if examples[0].label is None:
        labels: torch.Tensor = ids.masked_fill(mask == 0, IGNORED_LABEL)
    else:
        labels = torch.tensor([e.label for e in examples])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
