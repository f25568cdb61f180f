"""Which layers does each scenario reach? Declared, by the match ledger, and as PEFT injects."""

from __future__ import annotations

import pytest

from bench.check.gate import HazardGate
from bench.cli.options import split
from bench.formulas import lora_parameters
from bench.measure.counting import count, inject
from bench.plugin.internals import root_of
from bench.reports.ledger import ledger_text
from bench.scenarios.expectations import expect
from bench.scenarios.scenario import load_scenarios
from bench.scenarios.subjects import Subject
from bench.targets import match
from bench.units import harmless


def test_declared_modules(architecture: str, model_of) -> None:
    """Every projection that architecture.toml declares is there, with its shape, and no other."""
    model = model_of(architecture)
    table = model.table
    declared = {}
    for projection in model.architecture.projections(model.fields):
        if projection.kind == "expert":
            shape = (projection.experts, projection.out_features, projection.in_features)
            found = [p.name for p in table.parameters if p.name.endswith(f".{projection.module}")]
            shapes = {p.shape for p in table.parameters if p.name in found}
            assert shapes == {shape}, projection.module
        else:
            found = model.matching(projection)
            shapes = {
                (m.in_features, m.out_features, m.bias, m.kernel)
                for m in map(table.by_name.__getitem__, found)
            }
            expected = (projection.in_features, projection.out_features)
            assert shapes == {(*expected, projection.bias, projection.kernel)}, projection.module
        assert len(found) == projection.count, projection.module
        declared.update(dict.fromkeys(found, projection.role))
    adaptable = {m.name for m in table.modules if m.kind != "other"}
    assert declared.keys() == adaptable | {p.name for p in table.expert_parameters}


def test_declared_total(architecture: str, model_of) -> None:
    """The closed form of the whole model equals the published total and the built model's."""
    model = model_of(architecture)
    declared = model.architecture.total_parameters(model.fields)
    assert declared == model.architecture.published.total_parameters
    assert declared == model.table.total_parameters


def test_counts(subject: Subject, peft_count, record) -> None:
    """Adapted layers by role: as declared, by the ledger, and module by module as PEFT injects."""
    model, scenario = subject.model, subject.scenario
    ledger = match(model.table, subject.adapter, model.role_of)
    injected = peft_count(model, subject.adapter)
    record.ledger(ledger)
    assert sorted(item.name for item in ledger.adapted) == sorted(injected.adapted)
    assert sorted(ledger.saved) == sorted(injected.saved)
    declared = expect(model, scenario, scenario.r)
    assert ledger.by_role == declared.by_role
    assert ledger.dead_entries == declared.dead_entries
    stated = scenario.expected
    assert ledger.dead_entries == stated.dead_entries
    if stated.adapted_layers is not None:
        assert ledger.adapted_layers == stated.adapted_layers
    if stated.same_as is not None:
        twin = load_scenarios()[stated.same_as]
        other = match(model.table, twin.adapter(model), model.role_of)
        assert [a.name for a in ledger.adapted] == [a.name for a in other.adapted]
        assert ledger.saved == other.saved


def test_user_targets(user_subject: Subject, peft_count, record, pytestconfig) -> None:
    """A user's own configuration: no dead entry but the optional ones, no hazard that fails, and
    PEFT agrees. What `bench targets` says is printed, for -rA."""
    option = pytestconfig.option
    gate = HazardGate.of_project(root_of(pytestconfig)).with_options(
        split(option.fail_on), (), option.minimum_coverage, strict=True
    )
    found = match(user_subject.model.table, user_subject.adapter, user_subject.model.role_of)
    ledger = gate.judge(found)
    failing = gate.failing(ledger)
    record.ledger(ledger)
    parameters = None if ledger.refusals else lora_parameters(ledger)
    print(harmless(ledger_text(user_subject, ledger, parameters, failing=failing)))
    if ledger.refusals:
        pytest.fail(f"PEFT refuses this configuration: {'; '.join(ledger.refusals)}", pytrace=False)
    injected = peft_count(user_subject.model, user_subject.adapter)
    assert sorted(item.name for item in ledger.adapted) == sorted(injected.adapted)
    if problem := user_subject.dead_entries(ledger):
        pytest.fail(problem, pytrace=False)
    if failing:
        pytest.fail(f"hazards: {', '.join(failing)}", pytrace=False)


# The figures that the OPT-350m notebook printed, and how they came about: it counted substrings in
# the module names of a model that get_peft_model had already wrapped. Each adapted projection then
# appears 11 times, as itself and as ten submodules of its adapter.
OPT_MODULES = 273
SUBMODULES = 10
ROOTS = 2  # PeftModel and LoraModel wrap the model in one module each


@pytest.fixture(scope="module")
def opt(model_of):
    return model_of("opt-350m")


def _wrapped(opt, times: int):
    model = opt.build()
    adapter = load_scenarios()["q_proj-v_proj"].adapter(opt)
    for _ in range(times):
        model = inject(model, adapter)
    return model


def test_opt_notebook_base_model(opt) -> None:
    names = [name for name, _ in opt.build().named_modules()]
    assert len(names) == OPT_MODULES
    for leaf in ("q_proj", "k_proj", "v_proj", "out_proj"):
        assert sum(name.endswith(f".{leaf}") for name in names) == 24
    bare = [name for name, _ in opt.build().model.named_modules()]
    assert sum(any(s in name for s in ("proj", "fc", "dense")) for name in bare) == 146


def test_opt_notebook_compatible_modules_are_of_a_wrapped_model(opt) -> None:
    """626 "LoRA-compatible", q 264, v 264, k 24, out 24: substrings in one wrapped model."""
    names = [name for name, _ in _wrapped(opt, 1).named_modules()]
    assert len(names) == OPT_MODULES + 2 * 24 * SUBMODULES + ROOTS == 755

    def holding(*parts: str) -> int:
        return sum(any(part in name for part in parts) for name in names)

    assert {p: holding(p) for p in ("q_proj", "v_proj", "k_proj", "out_proj")} == {
        "q_proj": 24 * (1 + SUBMODULES),
        "v_proj": 24 * (1 + SUBMODULES),
        "k_proj": 24,
        "out_proj": 24,
    }
    assert 24 * (1 + SUBMODULES) == 264
    assert holding("proj", "fc", "dense") == 146 + 2 * 24 * SUBMODULES == 626


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
def test_opt_notebook_791_modules_are_nineteen_wraps(opt) -> None:
    """791 = 273 + 2·24·10 + 2·19: the cell had been run nineteen times on the same model."""
    assert OPT_MODULES + 2 * 24 * SUBMODULES + 19 * ROOTS == 791
    assert len(list(_wrapped(opt, 19).named_modules())) == 791


def test_distilbert_head_without_a_task_type_stays_frozen(model_of) -> None:
    """Without a task type PEFT trains the adapter only; the fresh head is frozen and random."""
    model = model_of("distilbert-base-uncased")
    from bench.adapters.config import AdapterConfig

    bare = AdapterConfig(("q_lin", "v_lin"), r=8)
    ledger = match(model.table, bare)
    assert [h.code for h in ledger.hazards] == ["frozen-head"]
    assert count(inject(model.build(), bare)).saved == ()
    told = match(model.table, AdapterConfig(("q_lin", "v_lin"), r=8, task_type="SEQ_CLS"))
    assert told.hazards == ()
    assert told.saved == ("pre_classifier", "classifier")
