"""Figures that others published: reproduced where they are right, shown impossible where not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from matrices import matrix

from bench.adapters.config import AdapterConfig
from bench.explain import explain
from bench.files import FIXTURES, read_toml
from bench.formulas import lora_parameters
from bench.measure.counting import count, inject
from bench.models.architectures import Model, load_model
from bench.models.configs import read_config
from bench.models.modules import read_table
from bench.targets import match

CASES = {path.stem: path for path in sorted((FIXTURES / "published" / "cases").glob("*.json"))}
IMPOSSIBLE = read_toml(FIXTURES / "published" / "impossible.toml")["figure"]


def _kinds(name: str) -> Iterator[object]:
    """The model type, and what the adapter says beside ranks and names."""
    case = json.loads(CASES[name].read_text())
    yield case["config"]["model_type"], case["auto_class"]
    yield case["published_total"] in (None, case["expected_total"])
    plain = ("r", "lora_alpha", "lora_dropout")
    for field, value in case["adapter"].items():
        yield field, None if field in plain else isinstance(value, str) or bool(value)


@pytest.mark.parametrize("name", matrix(CASES, by=_kinds))
def test_published_case(name: str) -> None:
    """35 published counts, by the ledger with the formulas and by PEFT itself.

    Where the total was printed with other libraries, the note says why it differs today.
    """
    case = json.loads(CASES[name].read_text())
    model = Model(name, case["config"], case["auto_class"])
    adapter = AdapterConfig.from_dict(case["adapter"], name)
    network = model.build()
    formula = lora_parameters(match(read_table(network), adapter))
    counted = count(inject(network, adapter))
    assert formula.trainable == counted.trainable == case["published_trainable"]
    assert formula.total == counted.total == case["expected_total"]
    if case["published_total"] not in (None, case["expected_total"]):
        assert case["note"], "a total that differs needs a reason"


def test_every_case_is_here() -> None:
    assert len(CASES) == 35
    assert all(json.loads(path.read_text())["source"] for path in CASES.values())


@cache
def published_model(name: str) -> Model:
    path: Path = FIXTURES / "published" / "models" / f"{name}.json"
    if path.exists():
        return Model(name, read_config(path), "AutoModelForCausalLM")
    return load_model(name)


def adapter_of(figure: dict, r: int) -> AdapterConfig:
    return AdapterConfig(tuple(figure["targets"]), r=r)


def figure_of(figure: dict, r: int) -> tuple[int, int]:
    formula = lora_parameters(match(published_model(figure["model"]).table, adapter_of(figure, r)))
    return formula.trainable, formula.total


@pytest.mark.parametrize(
    "figure",
    matrix([pytest.param(f, id=f["id"]) for f in IMPOSSIBLE], by=lambda figure: figure.keys()),
)
def test_impossible(figure: dict) -> None:
    """The claimed configuration does not give the published line; another one does."""
    claimed = (figure["trainable"], figure.get("total"))
    ranks = [figure["r"]] if "r" in figure else [2**n for n in range(9)]
    for r in ranks:
        assert figure_of(figure, r) != claimed
    if "real" in figure:
        model = published_model(figure["model"])
        counted = count(inject(model.build(), adapter_of(figure, figure["r"])))
        assert figure_of(figure, figure["r"])[0] == counted.trainable == figure["real"]
        assert figure["real"] != figure["trainable"]
    if "per_rank" in figure:
        assert figure_of(figure, 1)[0] == figure["per_rank"]
        assert figure["trainable"] % figure["per_rank"]
    if "possible_r" in figure:
        trainable, total = figure_of(figure, figure["possible_r"])
        assert trainable == figure["trainable"]
        assert total - trainable == figure["total"]
    belongs = figure["belongs"]
    trainable, total = figure_of(belongs, belongs["r"])
    assert trainable == figure["trainable"]
    assert belongs.get("total_fits", False) == (total == figure.get("total"))


@pytest.mark.parametrize("figure", IMPOSSIBLE, ids=[f["id"] for f in IMPOSSIBLE])
def test_explain_finds_what_it_was(figure: dict) -> None:
    """The inverse names the configuration that an impossible figure belongs to."""
    belongs = figure["belongs"]
    table = published_model(belongs["model"]).table
    reached = set(match(table, adapter_of(belongs, belongs["r"])).by_role)
    answer = explain(table, figure["trainable"])
    assert any(
        found.adapter.r == belongs["r"] and set(match(table, found.adapter).by_role) == reached
        for found in answer.exact
    )
