"""Trainable and total parameters: declared, in closed form, and counted on PEFT's model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.adapters import AdapterConfig
from bench.architectures import FIXTURES, Model, read_toml
from bench.counting import count, inject
from bench.expectations import expect
from bench.formulas import lora_parameters
from bench.plugin import Subject
from bench.targets import match

PUBLISHED = read_toml(FIXTURES / "published" / "parameters.toml")["figure"]


def test_parameters(ranked: Subject, peft_count, record) -> None:
    """The declarations' closed form = the formula over the ledger = what PEFT counts."""
    ledger = match(ranked.model.table, ranked.adapter, ranked.model.role_of)
    formula = lora_parameters(ledger)
    counted = peft_count(ranked.model, ranked.adapter)
    record.parameters(formula)
    assert (formula.trainable, formula.total) == (counted.trainable, counted.total)
    declared = expect(ranked.model, ranked.scenario, ranked.adapter.r)
    assert (declared.trainable, declared.total) == (counted.trainable, counted.total)


@pytest.mark.parametrize("figure", PUBLISHED, ids=[f["id"] for f in PUBLISHED])
def test_published(figure: dict, model_of) -> None:
    """Published lines, by the formula and by PEFT itself."""
    model = model_of(figure["model"])
    adapter = AdapterConfig.from_dict(figure["adapter"], figure["id"])
    formula = lora_parameters(match(model.table, adapter))
    counted = count(inject(model.build(), adapter))
    for name in ("trainable", "total"):
        if name in figure:
            assert getattr(formula, name) == getattr(counted, name) == figure[name]
    if "percent" in figure:
        assert f"{100 * formula.share:.2f}" == figure["percent"]


def test_user_parameters(user_subject: Subject, peft_count, record) -> None:
    """The formula equals PEFT's count on a user's own model."""
    ledger = match(user_subject.model.table, user_subject.adapter)
    formula = lora_parameters(ledger)
    counted = peft_count(user_subject.model, user_subject.adapter)
    record.parameters(formula)
    assert (formula.trainable, formula.total) == (counted.trainable, counted.total)


WIDTHS = st.integers(1, 6).map(lambda n: 16 * n)


@st.composite
def small_models(draw: st.DrawFn) -> tuple[Model, list[str], list[str]]:
    """A random small geometry, its linear names, and names that can be saved whole."""
    heads = draw(st.sampled_from([2, 4]))
    hidden, inner = heads * draw(WIDTHS), draw(WIDTHS)
    layers, vocabulary = draw(st.integers(1, 3)), draw(st.integers(5, 60))
    kind = draw(st.sampled_from(["llama", "opt", "phi3", "gpt2", "distilbert", "mixtral"]))
    common = {"vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    tied = {"tie_word_embeddings": draw(st.booleans())}
    decoder = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    grouped = {"num_key_value_heads": draw(st.sampled_from([1, heads])), "intermediate_size": inner}
    names, saved = ["q_proj", "k_proj", "v_proj", "o_proj"], ["lm_head", "embed_tokens"]
    auto_class = "AutoModelForCausalLM"
    if kind == "llama":
        config = {**decoder, **grouped, **tied, "attention_bias": draw(st.booleans()),
                  "mlp_bias": draw(st.booleans())}  # fmt: skip
        names = [*names, "gate_proj", "up_proj", "down_proj"]
    elif kind == "mixtral":
        config = {**decoder, **grouped, **tied, "num_local_experts": draw(st.integers(2, 4))}
    elif kind == "phi3":
        config = {**decoder, **grouped, **tied}
        names = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    elif kind == "opt":
        config = {**decoder, **tied, "ffn_dim": inner, "word_embed_proj_dim": draw(WIDTHS),
                  "do_layer_norm_before": draw(st.booleans()), "enable_bias": draw(st.booleans())}  # fmt: skip
        names = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    elif kind == "gpt2":
        config = {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_inner": inner, **tied}
        names, saved = ["c_attn", "c_proj", "c_fc"], ["lm_head", "wte"]
    else:
        config = {"dim": hidden, "hidden_dim": inner, "n_layers": layers, "n_heads": heads}
        names, saved = ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"], ["classifier"]
        auto_class = "AutoModelForSequenceClassification"
    return Model(kind, {"model_type": kind, **common, **config}, auto_class), names, saved


@given(st.data())
def test_formula_equals_count(data: st.DataObject) -> None:
    """Random shapes × random configurations: the ledger and the formula equal PEFT."""
    model, names, savable = data.draw(small_models())
    targets = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    saved = data.draw(st.lists(st.sampled_from(savable), unique=True))
    task = "SEQ_CLS" if model.label == "distilbert" and data.draw(st.booleans()) else None
    adapter = AdapterConfig(
        tuple(targets),
        r=data.draw(st.integers(1, 40)),
        modules_to_save=tuple(saved),
        bias=data.draw(st.sampled_from(["none", "all", "lora_only"])),
        use_dora=data.draw(st.booleans()),
        task_type=task,
    )
    ledger = match(model.table, adapter)
    formula = lora_parameters(ledger)
    counted = count(inject(model.build(), adapter))
    assert sorted(item.name for item in ledger.adapted) == sorted(counted.adapted)
    assert sorted(ledger.saved) == sorted(counted.saved)
    assert (formula.trainable, formula.total) == (counted.trainable, counted.total)
