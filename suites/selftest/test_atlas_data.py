"""The atlas itself: names, files, differences. No model is built here."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
from atlas_depth import Depths, Stacks
from hypothesis import given
from hypothesis import strategies as st

from bench.adapters.config import ALL_LINEAR, AdapterConfig
from bench.atlas import (
    Atlas,
    Bare,
    Folded,
    TypeEntry,
    build,
    find_atlas,
    load_atlas,
    names,
    reviewed,
    save_atlas,
    store,
)
from bench.atlas.diff import diff_atlases, kinds_of_change
from bench.errors import BenchError
from bench.measure.reach import load_reach
from bench.models.modules import Module, ModuleTable, Parameter
from bench.targets import match

ROWS = (
    Folded("model.embed_tokens", "embedding", "embedding", 100, 8),
    Folded("model.layers.[0-3].self_attn.q_proj", "query", "linear", 8, 8, True),
    Folded("model.layers.[0-3].self_attn.k_proj", "key", "linear", 8, 4),
    Folded("model.layers.[0-3].self_attn.v_proj", "value", "linear", 8, 4),
    Folded("model.layers.[0,2].mlp.experts.[0-1].w1", "gate", "linear", 8, 16),
    Folded("model.layers.[0,2].mlp.experts.[0-1].w3", "up", "linear", 8, 16),
    Folded("model.layers.[0,2].mlp.experts.[0-1].w2", "down", "linear", 16, 8),
    Folded("conv", "convolution", "convolution2d", 3, 8, False, 9, 1),
    Folded("lm_head", "head", "linear", 8, 100),
)
ENTRY = TypeEntry(
    "AutoModelForCausalLM", "ToyForCausalLM", True, 4, 4711, "model.embed_tokens", "lm_head",
    ("lm_head",), "", False, ROWS, (), ("layers", "mlp", "norm"),
)  # fmt: skip
ATLAS = Atlas("9.9.9", {"toy": ENTRY, "other-toy": replace(ENTRY, causal_lm=False)},
              {"broken": "needs the optional package spam"})  # fmt: skip


# Names

INDICES = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 5)), min_size=1, max_size=60, unique=True
)


@given(INDICES)
def test_folded_names_stand_for_exactly_the_names(indices) -> None:
    plain = [f"model.layers.{i}.experts.expert_{j}.fc_1" for i, j in indices]
    folded = names.fold(plain)
    assert sorted(n for f in folded for n in names.expand(f)) == sorted(plain)
    assert sum(map(names.count_names, folded)) == len(plain)
    assert {names.template(f) for f in folded} == {"model.layers.*.experts.expert_*.fc_1"}


def test_names_are_folded_as_people_read_them() -> None:
    plain = [f"h.{i}.attn.q" for i in (0, 1, 2, 5, 7, 8)]
    assert names.fold(plain) == ["h.[0-2,5,7-8].attn.q"]
    assert names.repeats("h.[0-2,5,7-8].attn.q.[0-9]") == 6
    assert names.repeats("lm_head") == 0
    assert names.fold(["lm_head"]) == ["lm_head"]
    # Numbers at the end of a word tell different modules apart.
    assert names.template("mlp.linear_1") == "mlp.linear_1"


@pytest.mark.parametrize("bad", ["a.[3-1].b", "a.[].b", "a.[1,1].b", "a.[x].b", "a.[0-99999999].b"])
def test_malformed_names_are_refused(bad: str) -> None:
    with pytest.raises(BenchError, match=r"in the file: "):
        names.check_folded(bad, "in the file")


# Files


def test_an_atlas_survives_the_file(tmp_path) -> None:
    bare = (Bare("model.layers.[0-1].experts.gate_up_proj", "gate_up", (8, 32, 16)),)
    atlas = replace(ATLAS, types={**ATLAS.types, "moe": replace(ENTRY, bare=bare)})
    save_atlas(atlas, tmp_path / "atlas")
    assert load_atlas(tmp_path / "atlas") == atlas
    assert sorted(p.name for p in (tmp_path / "atlas").iterdir()) == [
        "types-b.json", "types-m.json", "types-o.json", "types-t.json",
    ]  # fmt: skip


def test_a_renamed_projection_is_one_changed_line(tmp_path) -> None:
    texts = []
    for name in ("query", "wq"):
        renamed = replace(ROWS[1], name=f"model.layers.[0-3].self_attn.{name}")
        entry = replace(ENTRY, projections=(ROWS[0], renamed, *ROWS[2:]))
        save_atlas(Atlas("9.9.9", {"toy": entry}), tmp_path / "atlas")
        texts.append((tmp_path / "atlas" / "types-t.json").read_text().splitlines())
    differing = [(a, b) for a, b in zip(*texts, strict=True) if a != b]
    assert differing == [
        ('  "model.layers.[0-3].self_attn.query": ["query","linear",8,8,true],',
         '  "model.layers.[0-3].self_attn.wq": ["query","linear",8,8,true],')
    ]  # fmt: skip


def test_writing_replaces_all_types_and_keeps_other_files(tmp_path) -> None:
    folder = tmp_path / "atlas"
    save_atlas(ATLAS, folder)
    (folder / "reach.json").write_text("{}")
    save_atlas(Atlas("9.9.9", {"zoo": ENTRY}), folder)
    assert sorted(p.name for p in folder.iterdir()) == ["reach.json", "types-z.json"]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("there", [True, False])
def test_an_atlas_is_written_where_a_link_points(there: bool, tmp_path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    if there:
        save_atlas(ATLAS, target)
    store.check_writable(link)
    save_atlas(Atlas("9.9.9", {"zoo": ENTRY}), link)
    assert link.is_symlink()
    assert [p.name for p in target.iterdir()] == ["types-z.json"]
    assert sorted(tmp_path.iterdir()) == [link, target]


@pytest.mark.parametrize("kind", ["file", "pipe", "device", "link to a device"])
def test_what_is_no_folder_is_refused_before_an_atlas_is_built(kind: str, tmp_path) -> None:
    path = tmp_path / "there"
    match kind:
        case "file":
            path.touch()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path = store.Path("/dev/null")
        case _:
            path.symlink_to("/dev/null")
    with pytest.raises(BenchError, match="no folder can be written here"):
        store.check_writable(path)


@pytest.mark.parametrize("interrupted", ["write_text", "rename"])
def test_an_interrupted_write_leaves_the_old_atlas(tmp_path, monkeypatch, interrupted) -> None:
    folder = tmp_path / "atlas"
    save_atlas(ATLAS, folder)
    original = getattr(store.Path, interrupted)

    def stop(self, *args, **kwargs):
        if interrupted == "write_text" or self.name.startswith(".atlas"):
            monkeypatch.setattr(store.Path, interrupted, original)
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(store.Path, interrupted, stop)
    with pytest.raises(KeyboardInterrupt):
        save_atlas(Atlas("9.9.9", {"zoo": ENTRY}), folder)
    assert load_atlas(folder) == ATLAS
    assert list(tmp_path.iterdir()) == [folder]


def _edit(path, *keys, value) -> None:
    data = json.loads(path.read_text())
    inside = data
    for key in keys[:-1]:
        inside = inside[key]
    inside[keys[-1]] = value
    path.write_text(json.dumps(data))


Q = "model.layers.[0-3].self_attn.q_proj"


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("format",), 2, "format is 2"),
        (("surprise",), 1, "unknown key .* 'surprise'"),
        (("transformers",), "8.8.8", "transformers 8.8.8, the rest is 9.9.9"),
        (("types", "toy", "surprise"), 1, "toy: 'surprise'"),
        (("types", "toy", "layers"), "4", "toy: layers: expected a whole number"),
        (("types", "toy", "layers"), True, "toy: layers: expected a whole number"),
        (("types", "toy", "tied"), [1], "toy: tied 1: expected text"),
        (("types", "ape"), {"unbuilt": "x"}, "ape: does not belong in this file"),
        (("types", "toy"), [], "toy: expected a table"),
        (("types", "toy"), {"unbuilt": 3}, "toy: unbuilt: expected text"),
        (("types", "toy", "projections", Q), ["query"], r"q_proj: expected \[role"),
        (("types", "toy", "projections", Q), ["qurey", "linear", 8, 8], "role .*q_proj.*qurey"),
        (("types", "toy", "projections", Q), ["query", "lin", 8, 8], "kind .*q_proj.*lin"),
        (("types", "toy", "projections", Q), ["query", "linear", 8, -8], "-8 is not a size"),
        (
            ("types", "toy", "projections", Q),
            ["query", "linear", 8, 8.5],
            "expected a whole number",
        ),
        (
            ("types", "toy", "projections", Q),
            ["query", "linear", 8, 8, 1],
            "bias: expected true or false",
        ),
        (("types", "toy", "projections", "a.[9-1].b"), ["query", "linear", 8, 8], "does not rise"),
        (("types", "toy", "bare"), {"a": ["gate_up", 8]}, r"a: expected \[role, experts"),
    ],
)
def test_a_file_that_is_not_understood_is_refused(tmp_path, keys, value, message) -> None:
    """The error names the file, the type and the key."""
    save_atlas(ATLAS, tmp_path / "atlas")
    path = tmp_path / "atlas" / "types-t.json"
    _edit(path, *keys, value=value)
    with pytest.raises(BenchError, match=message):
        load_atlas(tmp_path / "atlas")


def test_what_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(BenchError, match="holds no atlas"):
        load_atlas(tmp_path)
    with pytest.raises(BenchError, match=r"unknown atlas '5\.22'.*5\.23\.0"):
        find_atlas("5.22")
    assert find_atlas("5.23.0") == find_atlas("transformers-5.23.0")


def test_reach_is_checked_too(tmp_path) -> None:
    text = '{"transformers": "9", "peft": "9", "types": {"toy": {"q-v": 0}}}'
    (tmp_path / "reach.json").write_text(text)
    with pytest.raises(BenchError, match=r"reach\.json: toy: q-v: 0 is neither"):
        load_reach(tmp_path)


def test_reviewed_data_is_checked(tmp_path) -> None:
    path = tmp_path / "overrides.toml"
    path.write_text('[type.toy]\nreason = "why"\ndepth = 3\n')
    with pytest.raises(BenchError, match=r"overrides\.toml: type\.toy: 'depth'"):
        reviewed.load_overrides(path)
    path.write_text("[type.toy]\nreason = 3\n")
    with pytest.raises(BenchError, match=r"type\.toy: reason: expected text"):
        reviewed.load_overrides(path)
    roles = tmp_path / "roles.toml"
    roles.write_text('[[role]]\ntypes = ["toy"]\nmodule = "x"\nrole = "qurey"\nreason = "why"\n')
    with pytest.raises(BenchError, match=r"role 1: 'qurey': did you mean query"):
        reviewed.load_roles(roles)


def test_every_override_is_of_a_known_type() -> None:
    for table in ("type", "transformers-5"):
        assert set(reviewed.load_overrides()[table]) <= set(build.model_types())
    assert set(reviewed.load_roles()) <= set(build.model_types())


# From a module table, and back


def _table() -> ModuleTable:
    modules = [Module("model"), Module("model.embed", "embedding", 100, 8)]
    parameters = [Parameter("model.embed.weight", (100, 8))]
    for i in range(3):
        modules += [
            Module(f"model.layers.{i}.attn.qkv_proj", "linear", 8, 16 if i else 24, True),
            Module(f"model.layers.{i}.experts"),
            Module(f"model.layers.{i}.gate"),
        ]
        parameters.append(Parameter(f"model.layers.{i}.experts.down_proj", (4, 8, 16)))
    return ModuleTable("toy", "Toy", tuple(modules), tuple(parameters), "model.embed")


def test_an_entry_holds_what_the_ledger_needs() -> None:
    table = _table()
    entry = build.make_entry(table, "AutoModel", False)
    again = entry.table("toy")
    assert [p.name for p in entry.projections] == [
        "model.embed", "model.layers.0.attn.qkv_proj", "model.layers.[1-2].attn.qkv_proj",
    ]  # fmt: skip
    assert entry.bare == (Bare("model.layers.[0-2].experts.down_proj", "down", (4, 8, 16)),)
    assert [p.role for p in entry.projections] == ["embedding"] + 2 * ["query_key_value"]
    for adapter in (
        AdapterConfig(("qkv_proj",)),
        AdapterConfig(ALL_LINEAR),
        AdapterConfig(("qkv_proj", "gate")),
        AdapterConfig(("nothing",)),
        AdapterConfig((), target_parameters=("experts.down_proj",)),
    ):
        live, stored = match(table, adapter), match(again, adapter)
        assert {a.name for a in live.adapted if a.module is None or a.module.kind != "other"} == {
            a.name for a in stored.adapted if a.module is None or a.module.kind != "other"
        }
        assert bool(live.refusals) == bool(stored.refusals)
        assert live.weight_coverage == stored.weight_coverage


# Depth


def _stacks(*layers: int, head: int = 100) -> Stacks:
    """A model with one linear layer a block, of these widths, and a head."""
    blocks = [Module(f"h.{i}.fc", "linear", 8, width) for i, width in enumerate(layers)]
    return Stacks.of(ModuleTable("toy", "Toy", (*blocks, Module("head", "linear", 8, head)), ()))


@pytest.mark.parametrize(
    ("twice", "problems"),
    [
        (_stacks(16, 32, 16, 32), []),
        (_stacks(16, 16, 16, 32), []),  # the first layers may be of another kind, and as many
        (_stacks(16, 32, 16, 32, head=200), ["outside the layers head changed"]),
        (_stacks(16, 32, 16, 64), ["h: other kinds of layer at twice the depth"]),
        (_stacks(16, 32, 16), ["h: 2 layers became 3"]),
        (_stacks(16, 32), ["nothing grew with depth"]),
        (_stacks(), ["h: there at one depth only", "nothing grew with depth"]),
    ],
)
def test_what_twice_the_depth_must_not_change(twice, problems) -> None:
    assert Depths(("depth",), _stacks(16, 32), twice).problems() == problems


# Differences


def _changes(old: TypeEntry, new: TypeEntry) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    changes = diff_atlases(Atlas("1", {"toy": old}), Atlas("2", {"toy": new}))
    return [(c.kind, c.old, c.new) for c in changes]


def _with(*rows, bare=(), without=()) -> TypeEntry:
    kept = tuple(row for row in ROWS if not row.name.endswith(without))
    return replace(ENTRY, projections=(*kept, *rows), bare=bare)


def test_equal_atlases_do_not_differ() -> None:
    assert diff_atlases(ATLAS, ATLAS) == []


def test_a_renamed_projection() -> None:
    row = replace(ROWS[1], name="decoder.h.[0-3].attn.query")
    assert _changes(ENTRY, _with(row, without=("q_proj",))) == [
        ("renamed", ("model.layers.*.self_attn.q_proj",), ("decoder.h.*.attn.query",))
    ]


def test_the_nearest_name_is_the_renamed_one() -> None:
    """Two stacks of the same shape: encoder stays encoder."""
    rows = [Folded(f"{s}.[0-3].q", "query", "linear", 8, 8) for s in ("encoder", "decoder")]
    new = [replace(r, name=r.name.replace(".q", ".q_proj")) for r in reversed(rows)]
    old, new = (replace(ENTRY, projections=tuple(r)) for r in (rows, new))
    assert _changes(old, new) == [
        ("renamed", ("decoder.*.q",), ("decoder.*.q_proj",)),
        ("renamed", ("encoder.*.q",), ("encoder.*.q_proj",)),
    ]


def test_fused_and_split_projections() -> None:
    row = Folded("model.layers.[0-3].self_attn.qkv_proj", "query_key_value", "linear", 8, 16)
    whole = _with(row, without=("q_proj", "k_proj", "v_proj"))
    parts = tuple(f"model.layers.*.self_attn.{n}_proj" for n in "qkv")
    assert _changes(ENTRY, whole) == [("fused", parts, ("model.layers.*.self_attn.qkv_proj",))]
    assert _changes(whole, ENTRY) == [("split", ("model.layers.*.self_attn.qkv_proj",), parts)]


def test_a_fused_projection_of_another_width_is_not_the_sum() -> None:
    row = Folded("model.layers.[0-3].self_attn.qkv_proj", "query_key_value", "linear", 8, 17)
    whole = _with(row, without=("q_proj", "k_proj", "v_proj"))
    assert [kind for kind, *_ in _changes(ENTRY, whole)] == 3 * ["lost"] + ["gained"]


def test_experts_that_became_parameters() -> None:
    bare = (
        Bare("model.layers.[0,2].mlp.experts.gate_up_proj", "gate_up", (2, 32, 8)),
        Bare("model.layers.[0,2].mlp.experts.down_proj", "down", (2, 8, 16)),
    )
    experts = "model.layers.*.mlp.experts"
    assert _changes(ENTRY, _with(bare=bare, without=("w1", "w2", "w3"))) == [
        ("fused", (f"{experts}.*.w1", f"{experts}.*.w3"), (f"{experts}.gate_up_proj",)),
        ("fused", (f"{experts}.*.w2",), (f"{experts}.down_proj",)),
    ]


def test_changed_lost_and_gained() -> None:
    changed = replace(ROWS[1], bias=False)
    gained = Folded("model.vision", "connector", "linear", 3, 8)
    new = replace(_with(changed, gained, without=("q_proj", "v_proj")), other=("norm", "v_proj"))
    q, v = (f"model.layers.*.self_attn.{n}_proj" for n in "qv")
    changes = diff_atlases(Atlas("1", {"toy": ENTRY}), Atlas("2", {"toy": new}))
    assert [(c.kind, c.old, c.new) for c in changes] == [
        ("changed", (q,), (q,)), ("lost", (v,), ()), ("gained", (), ("model.vision",)),
    ]  # fmt: skip
    assert "4 linear 8 -> 8 with bias -> 4 linear 8 -> 8" in changes[0].detail
    assert "LoRA cannot adapt it" in changes[1].detail


def test_types_that_come_go_and_build() -> None:
    old = Atlas("1", {"a": ENTRY, "b": ENTRY}, {"c": "why"})
    new = Atlas("2", {"c": ENTRY, "d": replace(ENTRY, class_name="D")}, {"b": "reason"})
    changes = diff_atlases(old, new)
    assert [(c.model_type, c.kind, c.detail) for c in changes] == [
        ("a", "type lost", ""), ("b", "builds no more", "reason"),
        ("c", "builds now", "was: why"), ("d", "type gained", ""),
    ]  # fmt: skip
    assert kinds_of_change(changes) == dict.fromkeys(
        ("type lost", "type gained", "builds no more", "builds now"), 1
    )
    tied = replace(ENTRY, tied=(), class_name="Other")
    kinds = [c.kind for c in diff_atlases(Atlas("1", {"a": ENTRY}), Atlas("2", {"a": tied}))]
    assert kinds == ["class", "tied"]
