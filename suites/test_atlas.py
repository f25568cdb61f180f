"""The atlas: is every model type still what was stored, and how far do common choices reach on it?

By default a sample of the types is built; with `-m "slow or not slow"` all of them.
"""

from __future__ import annotations

import time
import tomllib
from importlib.metadata import version
from zlib import crc32

import pytest

from bench.adapters import ALL_LINEAR, AdapterConfig
from bench.architectures import FIXTURES
from bench.atlas import find_atlas, load_atlas, stored_versions
from bench.atlas.build import Unbuildable, build_entry, build_model, model_types
from bench.atlas.depth import depths
from bench.atlas.diff import FUSED_INTO, RENAMED, diff_atlases
from bench.atlas.entries import with_roles
from bench.atlas.headline import headline
from bench.atlas.reach import (
    DEFAULT,
    REFUSED,
    SCENARIOS,
    ledger_names,
    load_reach,
    outcome,
    peft_defaults,
    peft_names,
    scenarios_for,
)
from bench.modules import read_table
from bench.roles import role_of

INSTALLED = version("transformers")
STORED = INSTALLED in stored_versions()
pytestmark = pytest.mark.skipif(
    not STORED,
    reason=f"no atlas of transformers {INSTALLED} is stored (there are "
    f"{', '.join(stored_versions())}): build one with `bench atlas`",
)
ATLAS = load_atlas(find_atlas(INSTALLED)) if STORED else None
REACH = load_reach(find_atlas(INSTALLED)) if STORED else None
SAMPLE = 25


def _sampled(types, size=SAMPLE, always=()):
    """All types, by name; those outside a fixed sample are slow. Large ones are never in it."""
    small = [t for t in types if sum(p.count for p in ATLAS.types[t].projections) < 300]
    drawn = {*sorted(small, key=lambda t: crc32(t.encode()))[: size - len(always)], *always}
    return [pytest.param(t, marks=() if t in drawn else pytest.mark.slow) for t in sorted(types)]


def _types(**options):
    types = list(ATLAS.types) if ATLAS else []
    return pytest.mark.parametrize("model_type", _sampled(types, **options))


# Every type is there


def test_every_known_type_is_in_the_atlas() -> None:
    """Each is built or has its reason; at least 95 in 100 are built."""
    assert sorted({*ATLAS.types, *ATLAS.unbuilt}) == model_types()
    assert not ATLAS.types.keys() & ATLAS.unbuilt.keys()
    assert len(ATLAS.types) >= 0.95 * ATLAS.known
    assert all(ATLAS.unbuilt.values())


@_types()
def test_installed_transformers_equals_the_atlas(model_type: str) -> None:
    assert build_entry(model_type) == ATLAS.types[model_type]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", list(ATLAS.unbuilt) if ATLAS else [])
def test_unbuilt_types_give_the_stored_reason(model_type: str) -> None:
    reason = ATLAS.unbuilt[model_type]
    try:
        build_model(model_type)
        found = ""
    except Unbuildable as error:
        found = str(error)
    if not found and reason.startswith("needs the optional package"):
        pytest.skip(f"it builds here: {reason.removeprefix('needs the ')} is installed")
    assert found == reason


# Roles


@pytest.mark.parametrize("stored", stored_versions())
def test_stored_roles_are_what_the_rules_say(stored: str) -> None:
    """After a change of a rule: `bench atlas --roles`."""
    atlas = load_atlas(find_atlas(stored))
    assert with_roles(atlas) == atlas


@pytest.mark.parametrize("stored", stored_versions())
def test_linear_modules_have_a_role(stored: str) -> None:
    known, every = load_atlas(find_atlas(stored)).role_coverage()
    assert known >= 0.98 * every


def test_rules_agree_with_declared_roles(architecture: str, model_of) -> None:
    """Each rule against what people wrote down of an architecture, module by module."""
    model = model_of(architecture)
    declared = {
        name: p.role
        for p in model.architecture.projections(model.fields)
        for name in model.matching(p)
    }
    assert declared
    assert {name: role_of(name) for name in declared} == declared


# Depth


def _depth_exceptions() -> dict[str, str]:
    data = tomllib.loads((FIXTURES / "atlas" / "depth.toml").read_text(encoding="utf-8"))
    return {t: rule["reason"] for rule in data["exception"] for t in rule["types"]}


DEPTH_EXCEPTIONS = _depth_exceptions()


@_types()
def test_twice_the_depth_is_twice_the_layers(model_type: str) -> None:
    """And nothing else changes. A listed exception that holds after all fails: take it off."""
    try:
        found = depths(model_type)
        problems = found.problems() if found else []
    except Unbuildable as error:
        problems = [f"cannot be built twice as deep: {error}"]
    assert bool(problems) == (model_type in DEPTH_EXCEPTIONS), problems
    if not problems and found is None:
        pytest.skip("its configuration names no depth")


# Reach


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_ledger_on_the_atlas_reaches_what_peft_injected(scenario: str) -> None:
    """All types: the ledger's count on the stored table, and PEFT's on the real model."""
    if REACH.peft != version("peft"):
        pytest.skip(f"stored with peft {REACH.peft}; {version('peft')} is installed")
    expected = {t: o[scenario] for t, o in REACH.types.items() if scenario in o}
    answers = {
        t: outcome(ledger_names(ATLAS.types[t].table(t), SCENARIOS[scenario])) for t in expected
    }
    assert answers == expected
    assert len(expected) == (len(ATLAS.types) if scenario != DEFAULT else _known_defaults())


def _known_defaults() -> int:
    return len(peft_defaults().keys() & ATLAS.types.keys())


@_types(size=8, always=("llama", "mixtral", "vit"))
def test_ledger_equals_peft(model_type: str) -> None:
    """Module for module, on a live model; where one refuses, so does the other."""
    table = read_table(build_model(model_type)[0])
    for name, adapter in scenarios_for(model_type).items():
        by_ledger, by_peft = ledger_names(table, adapter), peft_names(model_type, adapter)
        assert by_ledger == by_peft, name
        assert outcome(by_peft) == REACH.types[model_type][name], name


# Keys of PEFT's mapping for which its default does not work, and why. The marks are strict: a
# repair upstream fails the suite, and the entry goes.
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


@pytest.mark.parametrize(
    "model_type",
    [
        pytest.param(key, marks=pytest.mark.xfail(reason=BROKEN_DEFAULTS[key], strict=True))
        if key in BROKEN_DEFAULTS else key
        for key in sorted(peft_defaults())
    ] if STORED else [],
)  # fmt: skip
def test_peft_default_reaches_something(model_type: str) -> None:
    assert model_type in ATLAS.types
    assert REACH.types[model_type][DEFAULT] != REFUSED


@pytest.mark.parametrize(
    "model_type",
    [
        pytest.param(key, marks=pytest.mark.xfail(reason=DEAD_DEFAULTS[key], strict=True))
        if key in DEAD_DEFAULTS else key
        for key in sorted(peft_defaults()) if key not in BROKEN_DEFAULTS
    ] if STORED else [],
)  # fmt: skip
def test_peft_default_has_no_dead_entry(model_type: str) -> None:
    from bench.targets import match

    default = peft_defaults()[model_type]
    adapter = AdapterConfig(default if isinstance(default, str) else tuple(default))
    assert match(ATLAS.types[model_type].table(model_type), adapter).dead_entries == ()


def test_headline() -> None:
    """Every causal LM is counted once, and all-linear never reaches less than the seven names."""
    seven, every = headline(ATLAS, "seven-names"), headline(ATLAS, "all-linear")
    assert seven.types == every.types == len(ATLAS.causal_lms)
    assert "llama" in seven.everything
    assert {"phi3", "mixtral", "gpt_oss"} <= {*seven.part}
    assert {"gpt2", "bloom", "falcon", "mamba"} <= {*seven.nothing}
    assert {*seven.everything} <= {*every.everything}


# From transformers 4 to 5


@pytest.fixture(scope="module")
def from_4_to_5():
    olds = [v for v in stored_versions() if v.startswith("4.")]
    if not olds:
        pytest.skip("no atlas of transformers 4 is stored: tox -e atlas-transformers-4")
    old, new = (load_atlas(find_atlas(v)) for v in (olds[-1], "5.23.0"))
    return {t: [c for c in diff_atlases(old, new) if c.model_type == t] for t in ("vit", "mixtral")}


def test_diff_finds_the_renamed_attention_of_vit(from_4_to_5) -> None:
    renamed = {c.old[0].split(".", 4)[-1]: c.new[0].split(".", 3)[-1]
               for c in from_4_to_5["vit"] if c.kind == RENAMED}  # fmt: skip
    assert renamed == {
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }


def test_diff_finds_the_fused_experts_of_mixtral(from_4_to_5) -> None:
    fused = [(c.old, c.new) for c in from_4_to_5["mixtral"] if c.kind == FUSED_INTO]
    before, after = "model.layers.*.block_sparse_moe.experts.*", "model.layers.*.mlp.experts"
    assert sorted(fused) == [
        ((f"{before}.w1", f"{before}.w3"), (f"{after}.gate_up_proj",)),
        ((f"{before}.w2",), (f"{after}.down_proj",)),
    ]


# Speed

RANKS = (4, 8, 16, 32, 64, 128)
TWELVE = (
    ("q_proj",), ("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("gate_proj", "up_proj", "down_proj"), SCENARIOS["seven-names"].target_modules,
    ("query", "value"), ("query_key_value",), ("c_attn", "c_proj"), ("fc1", "fc2"),
    ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"), r".*\.(q|v)_proj", ALL_LINEAR,
)  # fmt: skip


@pytest.mark.slow
def test_tables_answer_fifty_times_faster_than_injection(record_property, capsys) -> None:
    """The whole atlas × 12 scenarios × 6 ranks from tables, all of it, with loading the atlas;
    against one `get_peft_model` a case, which is timed on a sample and multiplied up."""
    from bench.formulas import lora_parameters
    from bench.targets import match

    started = time.perf_counter()
    cases = 0
    for model_type, entry in load_atlas(find_atlas(INSTALLED)).types.items():
        table = entry.table(model_type)
        for targets in TWELVE:
            for r in RANKS:
                ledger = match(table, AdapterConfig(targets, r=r))
                if not ledger.refusals:
                    lora_parameters(ledger)
                cases += 1
    by_tables = time.perf_counter() - started
    drawn = sorted(ATLAS.types, key=lambda t: crc32(t.encode()))[:30]
    started = time.perf_counter()
    for number, model_type in enumerate(drawn):
        peft_names(model_type, AdapterConfig(TWELVE[number % len(TWELVE)]))
    by_injection = (time.perf_counter() - started) / len(drawn) * cases
    with capsys.disabled():
        print(
            f"\n{cases:,} cases: {by_tables:.0f} s from tables; {by_injection:,.0f} s by injection "
            f"(from {len(drawn)} timed cases); {by_injection / by_tables:.0f} times faster"
        )
    record_property("times_faster", by_injection / by_tables)
    assert by_injection >= 50 * by_tables
