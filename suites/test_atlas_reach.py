"""How far common choices of target modules reach on every model type: the ledger, read off the
stored atlas, against what PEFT injects into the real model.

By default a sample of the types is injected; with `-m slow` all of them.
"""

from __future__ import annotations

from importlib.metadata import version

import pytest
from atlas_types import (
    STORED,
    needs_atlas,
    on_types,
    parametrize_types,
    stored_atlas,
    stored_reach,
)

from bench.adapters.config import AdapterConfig
from bench.atlas.build import build_model
from bench.errors import BenchError
from bench.files import FIXTURES, INSTALLED
from bench.measure.counting import count, inject
from bench.measure.reach import (
    DEFAULT,
    REFUSED,
    SCENARIOS,
    ledger_names,
    outcome,
    peft_defaults,
    peft_names,
    scenarios_for,
    stored_names,
)
from bench.models.modules import read_table
from bench.reports.atlas import WORKS, default_outcomes, headline, missed_roles, refresh
from bench.targets import match

pytest_generate_tests = parametrize_types
pytestmark = needs_atlas


@pytest.mark.evidence
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_ledger_on_the_atlas_reaches_what_peft_injected(scenario: str) -> None:
    """All types: the ledger's count on the stored table, and PEFT's on the real model."""
    atlas, reach = stored_atlas(), stored_reach()
    if reach.peft != version("peft"):
        pytest.skip(f"stored with peft {reach.peft}; {version('peft')} is installed")
    expected = {t: o[scenario] for t, o in reach.types.items() if scenario in o}
    answers = {t: outcome(stored_names(atlas.types[t], t, scenario)) for t in expected}
    assert answers == expected
    concerned = peft_defaults().keys() & atlas.types if scenario == DEFAULT else atlas.types
    assert set(expected) == set(concerned)


@pytest.mark.evidence
@on_types(size=8, always=("llama", "mixtral", "vit"))
def test_ledger_equals_peft(model_type: str) -> None:
    """Module for module, on a live model; where one refuses, so does the other."""
    table = read_table(build_model(model_type)[0])
    for name, adapter in scenarios_for(model_type).items():
        by_ledger, by_peft = ledger_names(table, adapter), peft_names(model_type, adapter)
        assert by_ledger == by_peft, name
        assert outcome(by_peft) == stored_reach().types[model_type][name], name


# PEFT's default targets. The marks are strict: a repair upstream fails the suite, and the entry
# goes.

_UNKNOWN = "peft <= 0.21.2, transformers <= 5.23.0: transformers knows no model type {!r}"
BROKEN_DEFAULTS = {
    "RefinedWeb": _UNKNOWN.format("RefinedWeb"),
    "RefinedWebModel": _UNKNOWN.format("RefinedWebModel"),
    "btlm": _UNKNOWN.format("btlm"),
    "chatglm": _UNKNOWN.format("chatglm"),
    "rwkv7": _UNKNOWN.format("rwkv7"),
    "mixtral": "peft 0.21 with transformers >= 5: the translation of expert names turns the "
    "default into an empty list, which PEFT refuses (peft issue 3009)",
}
DEAD_DEFAULTS = {
    "blip-2": "peft <= 0.21.2: q and v reach nothing beside an OPT language model",
}


def _keys(known_defects: dict[str, str], leave_out: tuple[str, ...] = ()):
    """The keys of PEFT's mapping, without importing PEFT: see the first test below."""
    stored = [t for t, o in stored_reach().types.items() if DEFAULT in o] if STORED else []
    return pytest.mark.parametrize("model_type", [
        pytest.param(key, marks=pytest.mark.xfail(reason=known_defects[key], strict=True))
        if key in known_defects else key
        for key in sorted({*stored, *BROKEN_DEFAULTS} - {*leave_out})
    ])  # fmt: skip


def test_every_key_of_peft_is_tested() -> None:
    stored = {t for t, o in stored_reach().types.items() if DEFAULT in o}
    assert {*stored, *BROKEN_DEFAULTS} == peft_defaults().keys()


@_keys(BROKEN_DEFAULTS)
def test_peft_default_reaches_something(model_type: str) -> None:
    assert model_type in stored_atlas().types
    assert stored_reach().types[model_type][DEFAULT] != REFUSED


@_keys(DEAD_DEFAULTS, leave_out=tuple(BROKEN_DEFAULTS))
def test_peft_default_has_no_dead_entry(model_type: str) -> None:
    default = peft_defaults()[model_type]
    adapter = AdapterConfig(default if isinstance(default, str) else tuple(default))
    assert match(stored_atlas().types[model_type].table(model_type), adapter).dead_entries == ()


@pytest.mark.xfail(
    strict=True,
    raises=BenchError,
    reason="peft <= 0.21.2, transformers 5: the causal LM of llama4 is a llama4_text, and only "
    "llama4 has a default",
)
def test_peft_default_of_llama4_through_its_causal_lm() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama4"))
    assert count(inject(model, AdapterConfig())).adapted


# The figures of docs/atlas.md


def test_headline() -> None:
    """Every causal LM is counted once; what PEFT refused reaches nothing; and all-linear never
    reaches less than the seven names."""
    atlas = stored_atlas()
    seven, every = headline(atlas, "seven-names"), headline(atlas, "all-linear")
    assert seven.types == every.types == len(atlas.causal_lms)
    assert {"llama", "mistral", "qwen3", "gemma2"} <= {*seven.everything}
    assert {"phi3", "mixtral", "gpt_oss"} <= {*seven.part}
    assert {"gpt2", "bloom", "falcon", "mamba"} <= {*seven.nothing}
    refused = {t for t in atlas.causal_lms if stored_reach().types[t]["seven-names"] == REFUSED}
    assert refused <= {*seven.nothing}
    assert {*seven.everything} <= {*every.everything}


def test_headline_says_what_is_missed() -> None:
    """By role, on types whose modules are known: Phi-3 fuses two projections, Mixtral its experts;
    OPT calls three by names of its own."""
    found = missed_roles(stored_atlas(), ("phi3", "mixtral", "opt", "llama"), "seven-names")
    assert found == {
        "down": ("mixtral", "opt"), "gate_up": ("phi3", "mixtral"), "output": ("opt",),
        "query_key_value": ("phi3",), "up": ("opt",),
    }  # fmt: skip


def test_default_outcomes_are_the_known_defects() -> None:
    outcomes = default_outcomes(stored_atlas())
    assert {key for key, found in outcomes.items() if found != WORKS} == {
        *BROKEN_DEFAULTS, *DEAD_DEFAULTS,
    }  # fmt: skip
    assert outcomes.keys() == peft_defaults().keys()


@pytest.mark.skipif(INSTALLED, reason="the pages stay in the repository")
def test_page_shows_what_is_stored() -> None:
    """After a change of an atlas: `bench atlas --page docs/atlas.md`."""
    if stored_reach().peft != version("peft"):
        pytest.skip(f"written with peft {stored_reach().peft}; {version('peft')} is installed")
    text = (FIXTURES.parent / "docs" / "atlas.md").read_text(encoding="utf-8")
    assert text == refresh(text, "docs/atlas.md")
