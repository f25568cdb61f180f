"""Alternatives of an expression that reach nothing: PEFT adapts as much without them."""

from __future__ import annotations

import re

import pytest
from test_hazards import TEXT, asked, said

from bench.adapters.config import AdapterConfig
from bench.measure.counting import count, inject
from bench.targets import match

UNSLOTH = (
    r"(?:.*?(?:vision|image|visual|patch|language|text).*?(?:self_attn|attention|attn|mlp)"
    r".*?(?:q_proj|v_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp)"
    r"\.(?:(?:q_proj|v_proj)))"
)


@pytest.mark.parametrize(
    ("pattern", "dead"),
    [
        (r".*\.(q_proj|dead_proj)", ["dead_proj"]),
        (r".*\.(q_proj|v_prj|w2)", ["v_prj", "w2"]),
        (r".*\.(q|v)_proj", []),
        (r".*layers\.(0|1|7)\..*\.((q|z)_proj|k_proj)", ["7", "z"]),
        (r".*\.q_proj|.*\.w(1|2)", [r".*\.w(1|2)"]),  # once, not what stands in it too
        (r"(?i).*\.(Q_PROJ|w1)", ["w1"]),
        (r"(model\.|base\.|)layers\.0.*q_proj|.*\.k_proj", [r"base\."]),
        (r"(.*\.)?(?P<which>q|w)_proj", ["w"]),
        # Each fits what another does: neither is dead, and without both nothing would be left.
        (r".*\.(q_proj|q_pro.)", []),
        (r".*\.(q_proj|q_pro.|w)", ["w"]),
        # Parts of a word, of which none makes a name alone
        (r".*\.q(_|p|r|o|j|x)+", ["x"]),
        (r".*(?<!foo|bar)q_proj", []),
        (r".*(?=q_proj|w).*", []),
        (r".*\.[q|w]_proj", []),
        (r".*\.q_proj\||.*\.v_proj", [r".*\.q_proj\|"]),
        (r"nothing|at_all", []),  # dead as a whole, which the entry says
        (UNSLOTH, []),
    ],
)
def test_alternatives_that_reach_nothing(pattern: str, dead: list[str]) -> None:
    """Dead are those that PEFT adapts as much without, and alone nothing of."""
    model = asked("llama", TEXT, "LlamaForCausalLM")
    found = said(match(model.table, AdapterConfig(pattern)))
    text = found.get("dead-alternative", "")
    told = text.partition(": ")[2].split("; ") if text else []
    assert [each.partition(" (write")[0] for each in told] == dead
    for each in dead if r"\|" not in pattern else ():
        left = re.sub(rf"\|{re.escape(each)}(?=[|)]|$)", "", pattern)
        assert left != pattern
        before, after = (
            count(inject(model.build(), AdapterConfig(p))).adapted for p in (pattern, left)
        )
        assert before == after
    if "v_prj" in dead:
        assert "v_prj (write instead: v_proj (" in text
