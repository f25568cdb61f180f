"""The formulas themselves: no torch, fast, and every term of them held by some check."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from bench.adapters.config import AdapterConfig
from bench.formulas import Parameters, lora
from bench.measure.counting import count, inject
from bench.models.architectures import Model, load_model
from bench.models.modules import read_table
from bench.targets import Ledger, match

if TYPE_CHECKING:
    from torch import nn

SMALL = {"vocab_size": 24, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


def test_no_torch() -> None:
    """`bench.formulas`, the other methods included, import neither torch nor PEFT."""
    code = (
        "import sys, bench.formulas, bench.formulas.methods, bench.formulas.budgets, bench.explain;"
        "sys.exit(bool({'torch', 'peft', 'transformers', 'pytest'} & set(sys.modules)))"
    )
    assert run_python(code).returncode == 0


def test_formulas_and_counting_are_strangers() -> None:
    """Neither imports the other, so that their agreement is evidence."""
    root = Path(lora.__file__).parent.parent
    for path in (root / "formulas").glob("*.py"):
        assert "counting" not in imported(path)
    assert not any("formulas" in name for name in imported(root / "measure" / "counting.py"))


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= set((node.module or "").split("."))
        elif isinstance(node, ast.Import):
            found |= {part for alias in node.names for part in alias.name.split(".")}
    return found


ANSWERS = """
import json, sys
from bench.adapters.config import AdapterConfig
from bench.formulas import lora_parameters
from bench.models.modules import Module, ModuleTable, Parameter
from bench.models.stacks import Stack
from bench.targets import match
data = json.load(open(sys.argv[1]))
table = ModuleTable(**{**data, "modules": tuple(Module(**m) for m in data["modules"]),
    "parameters": tuple(Parameter(p["name"], tuple(p["shape"]), p["same_as"])
                        for p in data["parameters"]), "tied": (), "repeated": (),
    "stacks": tuple(Stack(**s) for s in data["stacks"])})
seven = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
scenarios = [(n,) for n in seven] + [("q_proj", "v_proj"), tuple(seven[:3]), tuple(seven[:4]),
                                     tuple(seven[4:]), tuple(seven)]
ledgers = [match(table, AdapterConfig(s, r=r)) for s in scenarios for r in (1, 8, 16, 32, 64, 128)]
found = [lora_parameters(ledger).trainable for ledger in ledgers]
print(json.dumps([len(found), found[-1], "torch" in sys.modules]))
"""


def test_answers_without_torch(tmp_path: Path) -> None:
    """An 8 B model × 12 scenarios × 6 ranks, in a process that never imports it."""
    path = tmp_path / "table.json"
    path.write_text(json.dumps(asdict(load_model("llama-3-8b").table)))
    answer = run_python(ANSWERS, str(path))
    assert not answer.returncode, answer.stderr
    # The last is all seven at r 128; 20,971,520 is published at r 8.
    assert json.loads(answer.stdout) == [72, 16 * 20_971_520, False]


# Mutation: whatever is dropped from or changed in the formula, a count no longer fits.


def decoder(kind: str, **config: object) -> Callable[[], nn.Module]:
    return Model(kind, {"model_type": kind, **SMALL, **config}, "AutoModelForCausalLM").build


WIDTHS = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
          "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
LLAMA = decoder("llama", **WIDTHS, attention_bias=True, tie_word_embeddings=True)
UNTIED = decoder("llama", **WIDTHS, attention_bias=True)
EXPERTS = decoder("mixtral", **WIDTHS, num_local_experts=3)
BLOCKS = {"target_modules_bd_a": ["q_proj"], "target_modules_bd_b": ["v_proj"], "nblocks": 2}
TWO = ("q_proj", "v_proj")


def layers() -> nn.Module:
    """Every kind of layer that LoRA adapts, with distinct widths."""
    import torch
    from torch import nn

    with torch.device("meta"):
        return nn.ModuleDict(
            {
                "rows": nn.Embedding(11, 6),
                "conv": nn.Conv2d(8, 20, 3, groups=2),
                "dense": nn.Linear(5, 7),
                "mixer": nn.MultiheadAttention(6, 1),
            }
        )


BATTERY: list[tuple[Callable[[], nn.Module], dict]] = [
    (LLAMA, {"target_modules": TWO}),
    (LLAMA, {"target_modules": TWO, "bias": "all", "modules_to_save": ("k_proj", "attn")}),
    (LLAMA, {"target_modules": TWO, "bias": "lora_only", "layer_replication": ((0, 1), (0, 2)),
             "layers_to_transform": (1,)}),
    (LLAMA, {"target_modules": TWO, "bias": "all", "modules_to_save": ("k_proj",),
             "layer_replication": ((0, 1), (0, 2))}),
    (LLAMA, {"target_modules": TWO, "modules_to_save": ("embed_tokens", "lm_head")}),
    (LLAMA, {"target_modules": TWO, "modules_to_save": ("embed_tokens", "lm_head"),
             "ensure_weight_tying": True}),
    (LLAMA, {"target_modules": (*TWO, "lm_head"), "ensure_weight_tying": True}),
    (LLAMA, {"target_modules": TWO, "trainable_token_indices": (1, 2, 3)}),
    (UNTIED, {"target_modules": TWO, "trainable_token_indices": {"embed_tokens": (1,),
                                                                 "lm_head": (1, 2)}}),
    (LLAMA, {"target_modules": TWO, "use_dora": True}),
    (LLAMA, {"target_modules": TWO, "use_dora": True, "modules_to_save": ("attn",)}),
    (LLAMA, {"target_modules": TWO, "lora_bias": True}),
    (LLAMA, {"target_modules": TWO, "kasa_config": {}}),
    (LLAMA, {"target_modules": TWO, "use_bdlora": BLOCKS}),
    (LLAMA, {"target_modules": TWO, "init_lora_weights": "mica"}),
    (LLAMA, {"target_modules": TWO, "init_lora_weights": "pissa", "r": 40}),
    (EXPERTS, {"target_modules": TWO, "target_parameters": ("experts.down_proj",)}),
    (EXPERTS, {"target_modules": (), "target_parameters": ("q_proj.weight",)}),
    (layers, {"target_modules": ("rows", "conv", "dense", "mixer"), "bias": "lora_only"}),
    (layers, {"target_modules": ("conv", "dense", "mixer"), "lora_bias": True}),
]  # fmt: skip

# PEFT leaves this variant's sampler to the first forward pass of a model on meta, so its count is
# held on real weights in suites/test_fields.py; here it is written from PEFT's documentation:
# a deviation for each rank and a weight for each of 8 samples, on 4 adapted layers.
MONTECLORA = {"target_modules": TWO, "monteclora_config": {}}


@cache
def battery() -> list[tuple[Ledger, tuple[int, int]]]:
    held = []
    for build, fields in BATTERY:
        adapter = AdapterConfig(**{"r": 4, **fields})
        network = build()
        ledger = match(read_table(network), adapter)
        assert not ledger.refusals, fields
        counted = count(inject(network, adapter))
        held.append((ledger, (counted.trainable, counted.total)))
    table = read_table(LLAMA())
    plain = count(inject(LLAMA(), AdapterConfig(TWO, r=4)))
    extra = 4 * (4 + 8)
    held.append(
        (match(table, AdapterConfig(r=4, **MONTECLORA)),
         (plain.trainable + extra, plain.total + extra))
    )  # fmt: skip
    return held


def holds(formula: Callable[[Ledger], Parameters]) -> bool:
    for ledger, counted in battery():
        try:
            found = formula(ledger)
            if (found.trainable, found.total) != counted:
                return False
        except Exception:  # a mutant may do anything
            return False
    return True


def test_the_formula_holds() -> None:
    assert holds(lora.lora_parameters)


@pytest.mark.parametrize(
    "term",
    ["lora", "modules_to_save", "trainable_tokens", "bias", "dora", "lora_bias", "kasa",
     "monteclora"],
)  # fmt: skip
@pytest.mark.parametrize("change", ["dropped", "one more", "not added"])
def test_every_term_counts(term: str, change: str) -> None:
    """Without a term, or with one element more in it, the counts no longer fit."""

    def mutant(ledger: Ledger) -> Parameters:
        from bench.formulas.terms import Term

        whole = lora.lora_parameters(ledger)
        terms = []
        for t in whole.terms:
            if t.name != term:
                terms.append(t)
            elif change == "one more":
                terms.append(Term(t.name, t.trained + 1, t.added, t.modules))
            elif change == "not added":
                terms.append(Term(t.name, t.trained, t.added + 1, t.modules))
        return Parameters(tuple(terms), whole.base)

    assert not holds(mutant)


def mutants() -> Iterator[tuple[str, str]]:
    """The module with one operation replaced by its left or its right side, or a condition turned.

    Messages and annotations are left alone: they count nothing.
    """
    source = Path(lora.__file__).read_text()
    spots = [
        (index, side)
        for index, node in enumerate(ast.walk(ast.parse(source)))
        for side in _sides(node)
    ]
    for index, side in spots:
        tree = ast.parse(source)
        nodes = list(ast.walk(tree))
        target = nodes[index]
        replacement = _mutate(target, side)
        for parent in nodes:
            for name, value in ast.iter_fields(parent):
                if value is target:
                    setattr(parent, name, replacement)
                elif isinstance(value, list):
                    value[:] = [replacement if item is target else item for item in value]
        yield (
            f"line {target.lineno} {side}: {ast.unparse(target)}",
            ast.unparse(ast.fix_missing_locations(tree)),
        )


def _sides(node: ast.AST) -> tuple[str, ...]:
    if isinstance(node, ast.BinOp) and isinstance(
        node.op, ast.Add | ast.Sub | ast.Mult | ast.FloorDiv
    ):
        if any(isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)
               for leaf in ast.walk(node)):  # fmt: skip
            return ()
        return ("left", "right")
    return ()


def _mutate(node: ast.AST, side: str) -> ast.AST:
    assert isinstance(node, ast.BinOp)
    return node.left if side == "left" else node.right


def load(source: str, path: Path) -> ModuleType:
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("bench.formulas.mutant", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


def test_every_operation_counts(tmp_path: Path) -> None:
    """Each sum and product of the formula, reduced to either side, breaks some count."""
    survivors = []
    number = 0
    for number, (label, source) in enumerate(mutants(), 1):
        module = load(source, tmp_path / f"mutant_{number}.py")
        if holds(module.lora_parameters):
            survivors.append(label)
    assert number > 40
    assert survivors == []


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("target_modules", "q_proj", ["q_proj"]),
        ("target_modules", '"q_proj"', ["q_proj"]),  # JSON's quotes are no part of the name
        ("target_modules", "q_proj, v_proj,", ["q_proj", "v_proj"]),
        ("target_modules", '["q_proj"]', ["q_proj"]),
        ("target_modules", "re:.*q_proj", ".*q_proj"),
        ("target_modules", "ALL-linear", "ALL-linear"),
        ("target_modules", "null", None),
        ("r", "8", 8),
        ("task_type", "CAUSAL_LM", "CAUSAL_LM"),
    ],
)
def test_values_as_a_command_line_writes_them(field: str, text: str, value: object) -> None:
    from bench.formulas import settings

    assert settings.parse_setting("loha", field, text) == value


@pytest.mark.parametrize(
    ("method", "field", "good", "bad"),
    [
        ("loha", "rank_dropout_scale", (True, False), (1, None, "true")),
        ("lokr", "init_weights", (True, False, "lycoris"), (1, None, "LYCORIS")),
        ("prefix-tuning", "init_weights", (None, "zero"), (True, 0)),
    ],
)
def test_one_of_a_few_values(method: str, field: str, good: tuple, bad: tuple) -> None:
    from bench.errors import BenchError
    from bench.formulas import settings

    for value in good:
        settings.check_settings(method, {field: value})
    for value in bad:
        with pytest.raises(BenchError, match=f"{method}: {field} must be") as error:
            settings.check_settings(method, {field: value})
        assert str(error.value).endswith(f", not {json.dumps(value)}")
