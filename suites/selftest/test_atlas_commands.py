"""`bench atlas`: what it stores, tells apart and refuses. No model is built here."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from test_atlas_data import ATLAS, ENTRY, ROWS

from bench.atlas import (
    Atlas,
    build,
    load_atlas,
    reviewed,
    save_atlas,
    store,
)
from bench.cli import main
from bench.errors import BenchError
from bench.reports.atlas import refresh


@pytest.fixture
def built(monkeypatch):
    """`bench atlas` without building: the models are ATLAS's."""
    import transformers

    atlas = replace(ATLAS, transformers=transformers.__version__)

    def fake(types, jobs, progress):
        progress("toy", 1, 1)
        chosen = set(types or [*atlas.types, *atlas.unbuilt])
        return replace(
            atlas,
            types={t: e for t, e in atlas.types.items() if t in chosen},
            unbuilt={t: r for t, r in atlas.unbuilt.items() if t in chosen},
        )

    monkeypatch.setattr(build, "build_atlas", fake)
    return atlas


def test_command_builds_and_stores(tmp_path, built, capsys) -> None:
    assert main(["atlas", "--output", str(tmp_path / "atlas")]) == 0
    assert load_atlas(tmp_path / "atlas") == built
    assert "2 of 3 model types" in capsys.readouterr().out


def test_command_replaces_the_named_types_only(tmp_path, built, capsys) -> None:
    stale = replace(ENTRY, class_name="Stale")
    save_atlas(replace(built, types={"toy": stale, "other-toy": stale}), tmp_path / "atlas")
    assert main(["atlas", "--output", str(tmp_path / "atlas"), "--types", "toy", "--json"]) == 0
    assert [json.loads(line)["model_type"] for line in capsys.readouterr().out.splitlines()] == [
        "toy"
    ]
    assert load_atlas(tmp_path / "atlas").types == {"toy": ENTRY, "other-toy": stale}


def test_command_fails_when_a_stored_type_builds_no_more(tmp_path, built, capsys) -> None:
    types = {**built.types, "broken": ENTRY}
    save_atlas(replace(built, types=types, unbuilt={}), tmp_path / "atlas")
    assert main(["atlas", "--output", str(tmp_path / "atlas")]) == 1
    assert "builds no more" in capsys.readouterr().out


def test_command_names_what_is_wrong(tmp_path, built, capsys) -> None:
    save_atlas(ATLAS, tmp_path / "old")
    (tmp_path / "file").write_text("")
    for folder, options, message in (
        ("atlas", ["--types", "toy"], "holds no atlas to put toy in"),
        ("atlas", ["--jobs", "0"], "--jobs must be"),
        ("old", [], "holds the atlas of transformers 9.9.9"),
        ("file", [], "file: no folder can be written here"),
        ("file/atlas", [], "atlas: no folder can be written here"),
    ):
        assert main(["atlas", "--output", str(tmp_path / folder), *options]) == 2
        assert message in capsys.readouterr().err


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(BenchError, match=r"unknown model type 'lama'.*llama"):
        build.build_atlas(["lama"])


def test_diff_command(tmp_path, capsys) -> None:
    other = replace(ENTRY, projections=ROWS[1:])
    for name, atlas in (("a", ATLAS), ("b", replace(ATLAS, types={**ATLAS.types, "toy": other}))):
        save_atlas(reviewed.with_roles(atlas), tmp_path / name)
    old, new = str(tmp_path / "a"), str(tmp_path / "b")
    assert main(["atlas", "--diff", old, old]) == 0
    assert "no difference" in capsys.readouterr().out
    assert main(["atlas", "--diff", old, new]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "toy", "  lost: model.embed_tokens (1 embedding 100 -> 8)",
        "model types by kind of change: lost 1",
    ]  # fmt: skip
    assert main(["atlas", "--diff", old, new, "--json"]) == 1
    line = json.loads(capsys.readouterr().out)
    assert (line["model_type"], line["kind"], line["old"]) == (
        "toy", "lost", ["model.embed_tokens"],
    )  # fmt: skip


def test_diff_of_some_types_only(tmp_path, capsys) -> None:
    for name, rows in (("a", ROWS), ("b", ROWS[1:])):
        types = dict.fromkeys(("toy", "other-toy"), replace(ENTRY, projections=rows))
        save_atlas(Atlas("9.9.9", types), tmp_path / name)
    old, new = str(tmp_path / "a"), str(tmp_path / "b")
    assert main(["atlas", "--diff", old, new, "--types", "toy", "--json"]) == 1
    assert [json.loads(line)["model_type"] for line in capsys.readouterr().out.splitlines()] == [
        "toy"
    ]
    assert main(["atlas", "--diff", old, new, "--types", "toi"]) == 2
    assert "unknown model type 'toi': did you mean toy?" in capsys.readouterr().err


def test_roles_are_assigned_again(tmp_path, monkeypatch, capsys) -> None:
    wrong = replace(ENTRY, projections=(replace(ROWS[1], role="key"), *ROWS[2:]))
    folder = tmp_path / "transformers-9.9.9"
    save_atlas(Atlas("9.9.9", {"toy": wrong}), folder)
    monkeypatch.setattr(store, "ROOT", tmp_path)
    assert main(["atlas", "--roles"]) == 0
    assert load_atlas(folder).types["toy"].projections[0].role == "query"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--diff a b --reach", "--diff does not go with --reach"),
        ("--roles --types toy", "--roles does not go with --types"),
        ("--page docs/atlas.md --output x", "--page does not go with --output"),
        ("--diff 5.23.0 1.2.3", "unknown atlas '1.2.3'"),
        ("--page nowhere.md", "nowhere.md: no such file"),
        ("--reach --types lama", "unknown model type 'lama': did you mean llama"),
    ],
)
def test_wrong_options_are_named(options, message, capsys) -> None:
    assert main(["atlas", *options.split()]) == 2
    assert message in capsys.readouterr().err


def test_page_without_figures_is_refused(tmp_path) -> None:
    with pytest.raises(BenchError, match=r"x\.md: holds no block of figures"):
        refresh("# A page\n", "x.md")
    with pytest.raises(BenchError, match=r"unknown block of figures in x\.md: 'headlines'"):
        refresh("<!-- figures: headlines -->\n<!-- end of figures -->\n", "x.md")
    stale = "before\n<!-- figures: size -->\nold\n<!-- end of figures -->\nafter\n"
    fresh = refresh(stale, "x.md")
    assert fresh.startswith("before\n<!-- figures: size -->\n| transformers")
    assert fresh.endswith("|\n<!-- end of figures -->\nafter\n")
    assert refresh(fresh, "x.md") == fresh
