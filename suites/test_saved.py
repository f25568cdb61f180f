"""A trained adapter against the model that it will be loaded on: held against PEFT's own loader.

Every adapter is saved by PEFT from a real model, damaged, and loaded by `PeftModel.load_adapter`,
which says what it missed, what it did not expect, and raises for a shape or a lost module.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_models import MODELS, built, tiny

from bench.errors import BenchError
from bench.saved.folder import find
from bench.saved.header import read_header
from bench.saved.keys import KeysFound, compare_keys
from bench.saved.values import read_values

Tensors = dict[str, "object"]


def saved(name: str, folder: Path) -> Path:
    """An adapter of a tiny model as PEFT saves it, its B drawn so that it changes something."""
    import torch
    from peft import LoraConfig, get_peft_model

    given = MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(
            r=4, target_modules=list(given.targets), task_type=given.task, **given.fields
        )
        model = get_peft_model(built(name), config)
        torch.manual_seed(1)
        for key, parameter in model.named_parameters():
            if "lora_B" in key or "lora_embedding_B" in key:
                torch.nn.init.normal_(parameter)
        model.save_pretrained(folder)
    return folder


def tensors_of(folder: Path) -> Tensors:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def rewrite(folder: Path, tensors: Tensors) -> None:
    from safetensors.torch import save_file

    save_file(tensors, folder / "adapter_model.safetensors")


def fine(name: str, folder: Path) -> str | None:
    return None


def old_prefix(name: str, folder: Path) -> str | None:
    """Every key one module higher or lower, as an upgrade of transformers leaves them."""

    def moved(key: str) -> str:
        parts = key.split(".")
        numbered = next(i for i, part in enumerate(parts) if part.isdigit())
        return ".".join((*parts[: numbered - 1], "old_name", *parts[numbered - 1 :]))

    layers = {k: t for k, t in tensors_of(folder).items() if re.search(r"\.\d+\.", k)}
    others = {k: t for k, t in tensors_of(folder).items() if k not in layers}
    rewrite(folder, {**{moved(k): t for k, t in layers.items()}, **others})
    return None


def one_layer_short(name: str, folder: Path) -> str | None:
    kept = {k: t for k, t in tensors_of(folder).items() if not re.search(r"\.1\.(?!weight)", k)}
    rewrite(folder, kept)
    return None


def other_rank(name: str, folder: Path) -> str | None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": 6}))
    return None


def other_class(name: str, folder: Path) -> str | None:
    """Another class of the same model; without the task type, for which PEFT refuses classes that
    do not generate (Llama keeps it)."""
    if name != "llama":
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "task_type": None}))
    return MODELS[name].other_class


def merged_head(name: str, folder: Path) -> str | None:
    """The base model's output embedding beside the adapter, as `save_embedding_layers` leaves it;
    where there is none, a tensor that no model has."""
    import torch

    model = built(name)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    called = next((n for n, m in model.named_modules() if m is head), "")
    weight = torch.zeros(2, 2) if head is None else torch.ones_like(head.weight)
    key = f"base_model.model.{called or 'no_such_head'}.weight"
    rewrite(folder, {**tensors_of(folder), key: weight.detach().clone()})
    return None


DAMAGES = (fine, old_prefix, one_layer_short, other_rank, other_class, merged_head)


@dataclass(frozen=True)
class Loaded:
    """What `load_adapter` said: keys without the adapter's name; names in what it raised."""

    missing: frozenset[str] = frozenset()
    unexpected: frozenset[str] = frozenset()
    shapes: frozenset[str] = frozenset()
    lost: str = ""
    refused: str = ""


def loaded_by_peft(name: str, folder: Path, auto_class: str | None) -> Loaded:
    from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel

    def plain(keys: list[str]) -> frozenset[str]:
        named = (k.replace(".default.", ".").removesuffix(".default") for k in keys)
        return frozenset(k.replace("magnitude_vector.weight", "magnitude_vector") for k in named)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = PeftConfig.from_pretrained(str(folder))
            kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
            model = kind(built(name, auto_class), config)
        except (AttributeError, ValueError) as error:
            return Loaded(refused=str(error).split("\n")[0])
        try:
            result = model.load_adapter(str(folder), "default", torch_device="cpu")
        except KeyError as error:
            return Loaded(lost=str(error.args[0]))
        except RuntimeError as error:
            found = re.findall(r"size mismatch for (\S+):", str(error))
            return Loaded(shapes=plain(found), refused="" if found else str(error))
    return Loaded(plain(result.missing_keys), plain(result.unexpected_keys))


def answered(name: str, folder: Path, auto_class: str | None) -> KeysFound:
    tensors = read_header(folder / "adapter_model.safetensors")
    return compare_keys(tiny(name, auto_class), folder / "adapter_config.json", tensors)


@pytest.mark.evidence
@pytest.mark.parametrize("damage", DAMAGES, ids=[d.__name__.replace("_", "-") for d in DAMAGES])
@pytest.mark.parametrize("name", MODELS)
def test_keys_are_what_peft_misses_and_does_not_expect(
    name: str, damage: Callable[[str, Path], str | None], tmp_path: Path
) -> None:
    folder = saved(name, tmp_path)
    auto_class = damage(name, folder)
    expected = loaded_by_peft(name, folder, auto_class)
    if expected.refused:
        with pytest.raises(BenchError, match=re.escape(expected.refused)):
            answered(name, folder, auto_class)
        return
    found = answered(name, folder, auto_class)
    if expected.lost:  # PEFT raises at the first; the answer names all of them
        assert expected.lost in found.lost
        return
    assert not found.lost
    if expected.shapes:  # PEFT raises for the shapes, and says nothing of the keys
        assert {m.key for m in found.mismatches} == expected.shapes
        return
    assert not found.mismatches
    assert set(found.missing) == expected.missing
    assert set(found.ignored) == expected.unexpected
    assert found.fits == (not expected.missing and not expected.unexpected)


@pytest.mark.parametrize("name", ["llama", "bert", "t5", "qwen2_vl", "gpt2"])
def test_an_old_prefix_is_named_with_the_keys_that_it_explains(name: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    before = set(tensors_of(folder))
    old_prefix(name, folder)
    after = set(tensors_of(folder))
    found = answered(name, folder, None)
    assert sum(move.keys for move in found.moves) == len(after - before)
    for move in found.moves:
        assert move.old == f"{move.new}.old_name"


def test_a_head_that_was_saved_whole_is_said_to_replace_the_base_models(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    assert answered("llama", folder, None).overwritten == ()
    merged_head("llama", folder)
    assert answered("llama", folder, None).overwritten == ("base_model.model.lm_head.weight",)


def test_norms_are_those_of_the_products(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    tensors = tensors_of(folder)
    for update in read_values(folder / "adapter_model.safetensors").updates:
        key = f"base_model.model.{update.module}"
        product = tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]  # type: ignore[operator]
        assert update.norm == pytest.approx(float(product.norm()), rel=1e-5)
        assert not update.untrained


@pytest.mark.parametrize("named", [False, True], ids=["as PEFT saves it", "with its name"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_an_adapter_that_never_trained_is_told(name: str, named: bool, tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    zeroed = {
        re.sub(r"(lora_(embedding_)?[AB])", r"\1.default", k) if named else k:
        t * 0 if re.search("lora_(embedding_)?B", k) else t  # type: ignore[operator]
        for k, t in tensors_of(folder).items()
    }  # fmt: skip
    rewrite(folder, zeroed)
    assert not loaded_by_peft(name, folder, None).missing
    values = read_values(folder / "adapter_model.safetensors")
    assert len(values.updates) == sum("lora_" in key for key in zeroed) / 2
    assert values.never_trained
    assert values.unchanged == ()


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "several"])
def test_weights_that_cannot_be_read_are_no_bare_configuration(kind: str, tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    file = folder / "adapter_model.safetensors"
    kept = file.rename(folder / "elsewhere")
    said = "is there, and is no file that can be read"
    match kind:
        case "link":
            file.symlink_to("../../blobs/abc")
        case "folder":
            file.mkdir()
        case "pipe":
            os.mkfifo(file)
        case "several":
            said = "weights in several files, which PEFT does not load"
            kept.rename(folder / "adapter_model-00001-of-00001.safetensors")
            (folder / "adapter_model.safetensors.index.json").write_text("{}")
    with pytest.raises(BenchError, match=said):
        find(folder)


def test_modules_that_changed_nothing_and_tensors_that_broke_are_named(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    tensors = tensors_of(folder)
    first, second = [k for k in tensors if k.endswith("q_proj.lora_B.weight")]
    tensors[first] = tensors[first] * 0  # type: ignore[operator]
    tensors[second][0, 0] = float("nan")  # type: ignore[index]
    rewrite(folder, tensors)
    values = read_values(folder / "adapter_model.safetensors")
    assert values.unchanged == (first.removeprefix("base_model.model.")
                                .removesuffix(".lora_B.weight"),)  # fmt: skip
    assert values.broken == (second,)
    assert not values.never_trained


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 bytes"),
        (b"\x10\x00\x00", "3 bytes"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00", "cut off"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "1,099,511,627,776 bytes"),
        ((100 << 20).to_bytes(8, "little") + b"{}", "104,857,600 bytes"),
        ((4).to_bytes(8, "little") + b"nope", "no JSON"),
        ((2).to_bytes(8, "little") + b"[]", "no table"),
        ((2).to_bytes(8, "little") + b"{}", "no tensor"),
        ((10).to_bytes(8, "little") + b'{"a": "b"}', "no table in the header"),
    ],
    ids=["empty", "three-bytes", "eight-bytes", "length-beyond", "100-mb", "no-json", "list",
         "no-tensors", "no-entry"],
)  # fmt: skip
def test_a_header_that_is_none_is_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(content)
    with pytest.raises(BenchError, match=re.escape(said)) as raised:
        read_header(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_cut_off_within_its_tensors_is_told(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BenchError, match="cut off: tensor"):
        read_header(path)


def test_values_in_other_dtypes_and_shapes_are_read_or_told(tmp_path: Path) -> None:
    """8-bit floats have a norm; a vector has no product, and its shape is told elsewhere."""
    import torch
    from safetensors.torch import save_file

    a, b = torch.full((4, 64), 2.0), torch.ones(64, 4)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.int8):
        tensors = {"x.lora_A.weight": a.to(dtype), "x.lora_B.weight": b.to(dtype)}
        save_file(tensors, tmp_path / "a.safetensors")
        (update,) = read_values(tmp_path / "a.safetensors").updates
        assert update.norm == pytest.approx((64 * 64 * 8.0**2) ** 0.5)
    save_file({"x.lora_A.weight": a[0], "x.lora_B.weight": b}, tmp_path / "a.safetensors")
    assert read_values(tmp_path / "a.safetensors").updates == ()


def test_a_bias_that_peft_writes_twice_is_no_ignored_key(tmp_path: Path) -> None:
    """With bias="all" that of a head is in the file as it is, and as the copy that it is of; PEFT
    reads the first, and what it has loaded answers as what was saved."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    given = {"target_modules": ["query"], "bias": "all", "task_type": "SEQ_CLS", "r": 2}
    model = get_peft_model(built("bert"), LoraConfig(**given)).eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(built("bert"), tmp_path).eval()
    ids = torch.arange(1, 9)[None]
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert loaded_by_peft("bert", tmp_path, None).unexpected != frozenset()
    assert answered("bert", tmp_path, None).ignored == ()
    tensors = tensors_of(tmp_path)
    (twice,) = (key for key in tensors if key.endswith("classifier.modules_to_save.bias"))
    del tensors[twice.replace(".modules_to_save.", ".")]
    rewrite(tmp_path, tensors)  # the copy alone is read by nobody
    assert answered("bert", tmp_path, None).ignored == (twice,)
