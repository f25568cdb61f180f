"""`bench explain` for people and for programs: which configurations train a given number."""

from __future__ import annotations

from dataclasses import asdict

from bench.explain import SEARCHED, Explanation, Found


def explanation_json(label: str, answer: Explanation) -> dict[str, object]:
    """One JSON object: what gives the number, and what was searched."""

    def row(found: Found) -> dict[str, object]:
        return {**asdict(found), "adapter": found.adapter.to_dict()}

    return {
        "model": label,
        "trainable": answer.trainable,
        "base": answer.base,
        "remark": answer.remark or None,
        "full_fine_tuning": answer.full,
        "searched": SEARCHED,
        "exact": [row(f) for f in answer.exact],
        "nearest": [row(f) for f in answer.nearest],
    }


def explanation_text(label: str, answer: Explanation) -> str:
    """What trains the number on the model called `label`, or what comes nearest."""
    lines = []
    if answer.full:
        lines.append(f"{answer.trainable:,} is every parameter of {label}: full fine-tuning")
    if answer.exact:
        lines.append(f"{answer.trainable:,} trainable parameters on {label}:")
        rows = answer.exact
    elif answer.full:
        rows = ()
    else:
        lines.append(
            f"no LoRA configuration that was tried trains exactly {answer.trainable:,} parameters "
            f"on {label}; the nearest:"
        )
        rows = answer.nearest
    for found in rows:
        off = found.trainable - answer.trainable
        count = "" if not off else f": {found.trainable:,} ({off:+,})"
        note = f" ({found.note})" if found.note else ""
        lines.append(f"  {found.describe()}{note}{count}")
        lines.append(f"    of {found.total:,} in all ({found.trainable / found.total:.4%})")
    if not answer.exact and not answer.full:
        lines.append(f"tried: {SEARCHED}")
    if answer.remark:
        lines.append(answer.remark)
    return "\n".join(lines)
