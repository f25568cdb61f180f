"""The atlas: is every model type of the installed transformers still what was stored?

By default a sample of the types is built; with `-m slow` all of them.
"""

from __future__ import annotations

import json
import re
import tomllib

import pytest
from atlas_depth import depths
from atlas_types import atlas_of, needs_atlas, on_types, parametrize_types, stored_atlas

from bench.atlas import stored_versions
from bench.atlas.build import Unbuildable, build_entry, build_model, model_types
from bench.atlas.diff import FUSED_INTO, RENAMED, diff_atlases
from bench.atlas.reviewed import with_roles
from bench.files import FIXTURES
from bench.models.roles import role_of

pytest_generate_tests = parametrize_types
pytestmark = needs_atlas


# Every type is there


def test_every_known_type_is_in_the_atlas() -> None:
    """Each is built or has its reason; at least 95 in 100 are built."""
    atlas = stored_atlas()
    assert sorted({*atlas.types, *atlas.unbuilt}) == model_types()
    assert not atlas.types.keys() & atlas.unbuilt.keys()
    assert len(atlas.types) >= 0.95 * atlas.known
    assert all(atlas.unbuilt.values())


@on_types(size=25, always=("encodec", "gpt_oss", "llama", "vit", "vits", "zamba"))
def test_installed_transformers_equals_the_atlas(model_type: str) -> None:
    assert build_entry(model_type) == stored_atlas().types[model_type]


@pytest.mark.slow
def test_unbuilt_types_give_the_stored_reason() -> None:
    """A type that wants an optional package builds where that is installed: that is no fault."""
    differing = {}
    for model_type, reason in stored_atlas().unbuilt.items():
        try:
            build_model(model_type)
            found = ""
        except Unbuildable as error:
            found = str(error)
        if found != reason and (found or not reason.startswith("needs the optional package")):
            differing[model_type] = (reason, found)
    assert not differing


# Types whose default configuration is a published model, and its parameters as published, in
# billions, to the digits given.
PUBLISHED = {
    "deepseek_v3": ("671", "DeepSeek-V3 technical report"),
    "gpt2": ("0.124", "OpenAI's repository of GPT-2, the smallest model"),
    "gpt_neox": ("20.554567680", "model card of EleutherAI/gpt-neox-20b"),
    "gpt_oss": ("116.8", "model card of gpt-oss-120b"),
    "llama": ("6.7", "LLaMA paper, table 2"),
    "mixtral": ("46.7", "Mistral's announcement of Mixtral 8x7B"),
}


@pytest.mark.parametrize("stored", stored_versions())
@pytest.mark.parametrize("model_type", PUBLISHED)
def test_totals_are_the_published_ones(model_type: str, stored: str) -> None:
    published, _ = PUBLISHED[model_type]
    types = atlas_of(stored).types
    if model_type not in types:
        pytest.skip(f"transformers {stored} has no {model_type}")
    total = types[model_type].parameters
    assert f"{total / 1e9:.{len(published.partition('.')[2])}f}" == published


def test_stored_renames_are_what_the_atlases_say() -> None:
    """What `bench atlas --renames` keeps, and some of it by hand."""
    from bench.atlas.renames import FILE, as_text, find_renames

    found = find_renames()
    assert FILE.read_text() == as_text(found)
    moved = dict(found["qwen2_vl"]["4.51.3"])
    new = ["model.language_model.layers.*.mlp.down_proj"]
    assert moved["model.layers.*.mlp.down_proj"] == new
    assert dict(found["vit"]["4.57.6"])["vit.encoder.layer.*.attention.attention.query"] == [
        "vit.layers.*.attention.q_proj"
    ]


# Roles


@pytest.mark.parametrize("stored", stored_versions())
def test_stored_roles_are_what_the_rules_say(stored: str) -> None:
    """After a change of a rule: `bench atlas --roles`."""
    atlas = atlas_of(stored)
    assert with_roles(atlas) == atlas


@pytest.mark.parametrize("stored", stored_versions())
def test_linear_modules_have_a_role(stored: str) -> None:
    """At least 98 in 100 linear modules (and bare weights) of the causal LMs."""
    known, every = atlas_of(stored).role_coverage()
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


@on_types(size=25, always=("albert", "esm", "gpt_neo", "llama"))
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


# From transformers 4 to 5


@pytest.fixture(scope="module")
def from_4_to_5():
    olds = [v for v in stored_versions() if v.startswith("4.")]
    old, new = map(atlas_of, (olds[-1], "5.23.0"))
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


@on_types(6, ["qwen2_vl", "mllama", "vit"])
def test_a_saved_name_is_traced_to_its_new_one(model_type: str) -> None:
    """A full name of an earlier transformers reaches nothing today, and the ledger says what to
    write: something that the model has."""
    from bench.adapters.config import AdapterConfig
    from bench.atlas.build import build_model
    from bench.atlas.renames import FILE
    from bench.models.modules import read_table
    from bench.targets import match
    from bench.targets.entries import ends_in

    moved = json.loads(FILE.read_text()).get(model_type, {})
    table = read_table(build_model(model_type)[0])
    names = [m.name for m in table.modules] + [p.name for p in table.parameters]
    for rows in moved.values():
        for old, _ in rows[:: max(1, len(rows) // 6)]:
            (entry,) = match(table, AdapterConfig((old.replace("*", "0"),))).entries
            offered = re.findall(r"[\w.]*\w", entry.suggestion)
            found = any(ends_in(name, offer) for offer in offered for name in names)
            assert not entry.dead or (entry.cause and found), old


def test_an_experts_old_weight_is_traced_to_its_parameter() -> None:
    """GraniteMoE's input_linear, a module of transformers 4.57, is a parameter now."""
    from bench.adapters.config import AdapterConfig
    from bench.targets import match

    table = stored_atlas().types["granitemoe"].table("granitemoe")
    old = "model.layers.0.block_sparse_moe.input_linear.weight"
    (entry,) = match(table, AdapterConfig((old,))).entries
    assert entry.cause == "transformers 4.57.6 called it so"
    name = "model.layers.0.block_sparse_moe.experts.gate_up_proj"
    assert entry.suggestion == f'target_parameters=["{name}"]'
    assert name in {p.name for p in table.parameters}
