"""What a stored run keeps of its models' config.json and of its adapters, to say what a changed
figure comes from, and whether two runs are about the same."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.adapters.checks import NESTED
from bench.adapters.config import UNSEEN, AdapterConfig
from bench.baselines.metrics import LOSS, Metric
from bench.baselines.runs import Record, StoredRun
from bench.files import CODE, WEIGHTS, digest_of
from bench.scenarios.subjects import Subject
from bench.units import first_of, one_line

if TYPE_CHECKING:
    from bench.baselines.verdicts import Verdict

NAMED = ("adapted_layers", "dead_entries", "modules", "ledger_digest")
"""Figures that the names of modules decide, and no width has a part in."""
COUNTED = (*NAMED, "trainable_parameters", "total_parameters")
"""Figures that no step has a part in: names and shapes alone decide them."""

ABSENT = "absent"
_LONGEST = 8
_MOST = 400
"""Fields of one model; no config.json of a model has as many."""
_LABELS = ("id2label", "label2id")
_FIRST_FITS = ("rank_pattern", "alpha_pattern")
_IN_ORDER = " in order"
_NEVER = re.compile(
    r"(?:.*\.)?(?:_name_or_path|transformers_version|auto_map\b.*|\w*token_id|\w*_eps\w*|\w*epsilon"
    r"|initializer_\w+|init_std|rope_\w+\b.*|use_cache|problem_type|peft_version|lora_alpha"
    r"|use_rslora|alpha_pattern\b.*)"
)
"""What no figure but a loss depends on."""
_BOOKKEEPING = re.compile(r"(?:\S*\.)?(?:_name_or_path|transformers_version|peft_version) ")
"""What nothing depends on."""
_NOT_SHAPES = re.compile(
    r"(?:.*\.)?(?:\w*drop(?:out)?\w*|\w*_act|\w*activation\w*|(?:torch_)?dtype|\w*implementation"
    rf"|sliding_window|init_lora_weights|(?:{'|'.join(UNSEEN)})\b.*)"
)
_WIDTHS = re.compile(
    r"(?:.*\.)?(?:\w*(?:_size|_dims?|_heads?|_embeddings|width|channels)|d_\w+|n_embd|n_inner|dim"
    r"|labels|n_head)"
)


def recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration as short values by dotted names. Long lists are their length
    and a digest, names of labels their number; patterns, of which PEFT takes the first that fits,
    have their order too."""
    return dict(sorted(_flat(config))[:_MOST])


def _flat(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        name = f"{before}{key}"
        if key in _LABELS and isinstance(value, Mapping):
            if key == _LABELS[0]:
                yield f"{before}labels", len(value)
        elif isinstance(value, Mapping) and (value or name not in NESTED):  # {}: its defaults
            yield from _flat(value, f"{name}.")
            if name in _FIRST_FITS and len(value) > 1:
                yield from _flat({f"{name}{_IN_ORDER}": list(value)})
        elif isinstance(value, list | tuple) and len(value) > _LONGEST:
            text = json.dumps(value, default=str)
            yield name, f"{len(value)} items ({hashlib.sha256(text.encode()).hexdigest()[:8]})"
        elif isinstance(value, bool | int | float) or value is None:
            yield name, value
        else:
            yield name, str(value)[:200]


def changes(
    old: Mapping[str, Any], new: Mapping[str, Any], metric: Metric | None = None
) -> list[str]:
    """`num_hidden_layers 2 -> 3` for every field that differs and can be the cause of a difference
    in `metric` (None: in how a case ended)."""
    may = {name for name in (*old, *new) if _may_change(name, metric)}
    return differing(*({k: v for k, v in each.items() if k in may} for each in (old, new)))


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`num_hidden_layers 2 -> 3` for every field that differs; the order of patterns where they
    are the same ones."""
    names = [n for n in sorted({*old, *new}) if old.get(n, ABSENT) != new.get(n, ABSENT)]
    orders = {name for name in names if name.endswith(_IN_ORDER)}
    others = {name.partition(".")[0] for name in names if name not in orders}
    others |= old.keys() ^ new.keys()
    same = {name for name in orders if not others & {name.removesuffix(_IN_ORDER), name}}
    return [
        f"{name} {old.get(name, ABSENT)} -> {new.get(name, ABSENT)}"
        for name in names
        if name in same or name not in orders
    ]


def with_defaults(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """What `recorded` keeps of an adapter, with the plain values that PEFT has for what it leaves
    out; {} where nothing of it is known."""
    return {**_PLAIN_DEFAULTS, **adapter} if adapter else {}


_PLAIN_DEFAULTS = {
    each.name: each.default
    for each in fields(AdapterConfig)
    if each.compare and isinstance(each.default, str | int | float)
}


def disagreeing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What two configurations say otherwise, of the fields that both have; "" where nothing."""
    old, new = recorded(one), recorded(other)
    both = old.keys() & new.keys()
    changed = differing(*({name: each[name] for name in both} for each in (old, new)))
    return first_of([c for c in changed if not _BOOKKEEPING.match(c)])


def decided(
    subjects: Mapping[str, Subject], progress: Callable[[int, int], object] | None = None
) -> dict[str, Any]:
    """What decides how each subject's case comes out, beside the machine, the versions and the
    step: a digest over all of it by the subject's key, and what there is to name of it.

    The weights are read whole: two trainings of one model differ in nothing else. `progress` is
    told of that, as `digest_of` does.
    """

    @cache  # many subjects are of one folder
    def of(folder: Path | None, *patterns: str) -> str | None:
        return None if folder is None else digest_of(folder, *patterns, progress=progress)

    found: dict[str, dict[str, Any]] = {}
    for key, subject in subjects.items():
        model, adapter = subject.model, subject.adapter.as_given()
        kept = recorded(adapter)
        orders = [value for name, value in kept.items() if name.endswith(_IN_ORDER)]
        named = {
            "model": model.label,
            "ranked": subject.ranked_key,
            "class": model.auto_class,
            "weights": of(subject.weights, *WEIGHTS),
            "code": of(model.own_code, *CODE),
        }
        whole = json.dumps([named, model.config, adapter, *orders], sort_keys=True, default=str)
        digest = hashlib.sha256(whole.encode()).hexdigest()
        found[key] = {**named, "adapter": kept, "digest": digest}
    models = {subject.model.label: recorded(subject.model.config) for subject in subjects.values()}
    return {"subjects": found, "models": models}


def others(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, subject by subject, between two answers of `decided`, in words; of the subjects
    that both have."""
    said = (
        f"{label}: {', '.join(changed[:3]) or 'another configuration'}"
        for label, changed in _changed(before, now)
    )
    return [one_line(each) for each in dict.fromkeys(said)]


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """(model or configuration, its fields that differ) of each subject that both have; none of
    these is known where the digests alone differ."""
    for key, new in now["subjects"].items():
        old = before["subjects"].get(key)
        if old is None or old.get("digest") == new.get("digest"):
            continue
        label = new["model"]
        of_model = [
            *differing(before["models"].get(label, {}), now["models"].get(label, {})),
            *differing({"class": old.get("class")}, {"class": new.get("class")}),
            *(f"other {what}" for what in ("weights", "code") if old.get(what) != new.get(what)),
        ]
        of_adapter = differing(*(with_defaults(each.get("adapter", {})) for each in (old, new)))
        if of_model or not of_adapter:
            yield label, of_model
        if of_adapter:
            yield str(new.get("ranked")), of_adapter


def unseen_changes(
    baseline: StoredRun,
    contender: StoredRun,
    verdicts: Iterable[Verdict],
    most: int | None = None,
) -> tuple[str, ...]:
    """`mine-own-r8: use_rslora False -> True`: what a case has configured otherwise than in the
    baseline and none of the verdicts' explanations says: no figure shows it, or the explanation
    named others first. most: so many fields of each are named, and the others counted."""
    told = {verdict.explanation for verdict in verdicts}
    contender = in_words_of(baseline, contender)
    said = []
    for label, changed in _changed(vars(baseline), vars(contender)):
        unseen = [c for c in changed if not (_BOOKKEEPING.match(c) or _is_told(c, told))]
        if unseen:
            said.append(one_line(f"{label}: {first_of(unseen, most or len(unseen))}"))
    return tuple(dict.fromkeys(said))


def _is_told(change: str, told: Collection[str]) -> bool:
    """Whether one of the explanations names the change; a rank is called so there."""
    words = {change, re.sub(r"^r (?=\d)", "rank ", change)}
    return any(word in text for word in words for text in told)


def another_model(baseline: StoredRun, contender: StoredRun, label: str) -> str:
    """That both runs call so what are two models, which lie in two places and whose configurations
    differ in what a figure may depend on, or whose own code does; "" where they are one, or nothing
    is known of it.

    In one place it is one model, whose changed configuration is what a comparison is for. Figures
    of random weights depend on no value; `other_weights` says which of real ones do.
    """
    places = [run.places.get(label, "") for run in (baseline, contender)]
    old, new = (run.models.get(label) for run in (baseline, contender))
    if places[0] == places[1]:
        return ""
    differ = [*(changes(old, new) if old and new else ()), *_other_code(baseline, contender, label)]
    if not differ:
        return ""
    was, now = (place or "a registered or unknown place" for place in places)
    return one_line(
        f"another model of the same name: {label} was in {was}, and is in {now}: {first_of(differ)}"
    )


def _other_code(baseline: StoredRun, contender: StoredRun, label: str) -> list[str]:
    old, new = (
        {s.get("code") for s in run.subjects.values() if s.get("model") == label} - {None}
        for run in (baseline, contender)
    )
    return ["other code of its own"] if old and new and old != new else []


def other_weights(
    baseline: StoredRun, contender: StoredRun, before: Record, after: Record, metric: Metric | None
) -> str:
    """That a figure comes from other real weights, whose values it may depend on; "" otherwise.

    Those of int8 do: as many columns are kept apart as the model has outliers. In every other
    precision values decide no figure of a step.
    """
    name = metric.name if metric is not None else ""
    if name in COUNTED or name == "dtypes" or name.startswith("predicted"):
        return ""
    both = ((baseline, before), (contender, after))
    old, new = (run.subjects.get(_subject(record), {}).get("weights") for run, record in both)
    differ = old and new and old != new and str(after.precision).startswith("int8")
    return "other weights, and int8 keeps a column of outliers apart" if differ else ""


def in_two_places(baseline: StoredRun, contender: StoredRun, before: Record, after: Record) -> bool:
    """Whether the models of two records lie in two places."""
    return baseline.places.get(before.model, "") != contender.places.get(after.model, "")


def _subject(record: Record) -> str:
    """The key of what was measured, which ends the id of its test."""
    return record.id.partition("[")[2].removesuffix("]")


def in_words_of(baseline: StoredRun, contender: StoredRun) -> StoredRun:
    """The contender with its models called as in the baseline, where both say that a model lies in
    the same place. One that is given beside others of its last name has more of its path in its
    ids: `model` alone is `a/model` beside `b/model`, and there `model` may be yet another."""
    old, new = baseline.places, contender.places
    names = {
        label: before
        for before, place in old.items()
        for label in new
        if place and new[label] == place and label != before
    }
    taken = {*names.values()}  # by another model, where one has such a name here
    names |= {label: f"./{label}" for label in new if label in taken and label not in names}
    if not names:
        return contender

    def key(text: str) -> str:
        test, bracket, rest = text.partition("[")
        labels = (label for label in contender.models if rest.startswith(f"{label}-"))
        own = max(labels, key=len, default="")  # `model` and `model-2` may both be there
        return f"{test}{bracket}{called(own)}{rest[len(own) :]}"

    def called(label: str) -> str:
        return names.get(label, label)

    asked = contender.selection
    only = {k: tuple(map(called, v)) if k == "model" else v for k, v in asked.only.items()}
    return replace(
        contender,
        records={
            key(k): replace(record, id=key(k), model=called(record.model))
            for k, record in contender.records.items()
        },
        selection=replace(
            asked,
            arguments=tuple(map(key, asked.arguments)),
            deselected=frozenset(map(key, asked.deselected)),
            only=only,
        ),
        models={called(label): fields for label, fields in contender.models.items()},
        places={called(label): place for label, place in new.items()},
        subjects={
            key(f"[{name}")[1:]: {**facts, "model": called(str(facts.get("model")))}
            for name, facts in contender.subjects.items()
        },
    )


def _may_change(name: str, metric: Metric | None) -> bool:
    if metric is not None and metric.kind == LOSS:
        return True
    if _NEVER.fullmatch(name):
        return False
    figure = metric.name if metric is not None else ""
    if figure in NAMED and _WIDTHS.fullmatch(name):
        return False
    return not (figure in COUNTED and _NOT_SHAPES.fullmatch(name))
