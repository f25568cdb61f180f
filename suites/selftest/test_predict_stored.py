"""Bases that are quantized already: what config.json says of their weights is predicted, or refused
by name. The cases of `fixtures/field/` are questions that people asked, with their sources.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.cli import main
from bench.errors import BenchError
from bench.files import FIXTURES
from bench.models.stored import Stored, read_stored, stored_precision

FIELD = FIXTURES / "field"
GIB = 1024**3
LLAMA = {"model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "vocab_size": 200,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
         "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
         "torch_dtype": "float16"}  # fmt: skip
LINEAR = 2 * (4 * 128 * 128 + 3 * 128 * 256)
REST = 2 * (2 * 200 * 128 + 5 * 128)  # float16: embedding, head and norms
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64}
PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
          "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32}}}}  # fmt: skip
HQQ = {"quant_method": "hqq",
       "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}}  # fmt: skip


def _said(capsys: pytest.CaptureFixture[str], model: Path, *options: str) -> dict[str, Any]:
    assert main(["memory", str(model), *options, "--json"]) in (0, 1)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture
def model(tmp_path: Path):
    def write(settings: object) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))  # a model is read once
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**LLAMA, "quantization_config": settings}))
        return folder

    return write


@pytest.mark.parametrize(
    ("settings", "bits"),
    [
        (AWQ, 4 + (16 + 4) / 128),
        (GPTQ, 4 + (16 + 4) / 64),
        (PACKED, 16 + 16 / 32),  # decompressed by the first forward pass
        (HQQ, 4 + (16 + 16) / 64),
    ],
)
def test_stored_weights_take_what_is_stored(settings, bits: float, model, capsys) -> None:
    """Bits an element with its group's scale and zero point; GPTQ keeps four bytes an input too."""
    found = _said(capsys, model(settings), "--target-modules", "q_proj", "--seq-len", "32")
    order = 2 * 4 * (6 * 128 + 256) if settings is GPTQ else 0  # g_idx of each layer
    exact = LINEAR * bits / 8 + REST + order
    assert found["precision"] == settings["quant_method"]
    assert found["breakdown"]["weights"] == pytest.approx(exact, abs=512 * 60)
    assert any(settings["quant_method"] in said for said in found["assumptions"])
    assert found["trainable_parameters"] == 2 * 8 * 2 * 128


def made_by(method: str, rows: int) -> list[tuple[tuple[int, ...], str]]:
    """Shape and dtype of all that one layer of 128 inputs and 256 outputs makes, forward and
    backward; a layer that is skipped stays."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from bench.models.stored_layers import store_linear_layers

    with torch.device("meta"):
        whole = torch.nn.Sequential(torch.nn.Linear(128, 256, bias=False), torch.nn.Linear(256, 8))
    store_linear_layers(whole, Stored(method, 4, 128, 16, 4, skipped=("1",)), torch.float16)
    assert type(whole[1]) is torch.nn.Linear
    made: list[tuple[tuple[int, ...], str]] = []

    class Watch(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if "empty" in str(func):
                made.append((tuple(out.shape), str(out.dtype).removeprefix("torch.")))
            return out

    x = torch.empty(rows, 128, dtype=torch.float16, device="meta", requires_grad=True)
    with Watch():
        whole[0](x).sum().backward()
    return made


def test_awq_expands_for_many_rows_and_going_backward() -> None:
    """gptqmodel's `AwqGemmFn`: 1,024 rows are multiplied as they are stored."""
    assert made_by("awq", 1025).count(((256, 128), "float16")) == 2
    assert made_by("awq", 1024).count(((256, 128), "float16")) == 1


def test_gptq_expands_once_and_autograd_keeps_it() -> None:
    """gptqmodel's `TorchLinear`: a word for each weight, its code, its scale and zero point."""
    found = made_by("gptq", 4)
    assert found == [((128, 256), "int32"), ((128, 256), "float16"), ((128, 256), "int8")]


def test_hqq_keeps_what_is_multiplied() -> None:
    assert made_by("hqq", 4).count(((256, 128), "float16")) == 2


def test_whole_models_of_stored_weights(model, capsys) -> None:
    """Seven adapted layers twice: GPTQ's expanded weights are all there as the backward pass
    begins, and one layer's with checkpointing; AWQ's never are."""
    step = ("--target-modules", "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
            "--seq-len", "32")  # fmt: skip
    awq = _said(capsys, model(AWQ), *step)["peak_allocated_bytes"]
    gptq = _said(capsys, model(GPTQ), *step)["peak_allocated_bytes"]
    assert gptq > awq + 2 * LINEAR * 0.8
    checkpointed = _said(capsys, model(GPTQ), *step, "--gradient-checkpointing")
    assert checkpointed["peak_allocated_bytes"] < gptq - LINEAR * 0.8
    assert any("autograd keeps it" in said for said in checkpointed["assumptions"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
          "bnb_4bit_compute_dtype": "bfloat16"}, ("nf4-dq", "bf16")),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "float16"}, ("fp4", "fp16")),
        ({"load_in_8bit": True, "quant_method": "bitsandbytes"}, ("int8", None)),
        (AWQ, ("awq", None)),
        (None, None),
    ],
)  # fmt: skip
def test_what_a_config_says(settings, said) -> None:
    assert stored_precision(settings, "x") == said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "mxfp4"}, "mxfp4: transformers does not train MXFP4.*--precision bf16"),
        ({"quant_method": "fp8"}, "fp8: what a step on FP8 weights takes is not predicted"),
        ({"quant_method": "aqlm"}, "aqlm: what a step on such weights takes is not predicted"),
        ({**AWQ, "bits": "four"}, "bits: a whole number, not 'four'"),
        ({**PACKED, "config_groups": {}}, "of compressed-tensors one group of weights is pred"),
        ({**PACKED, "use_optimized_inference": True}, "transformers does not train on those"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf3"}, "'nf3': nf4 or fp4"),
        ({"bits": 4, "group_size": 128}, "without a quant_method.*--precision says"),
    ],
)
def test_what_is_not_predicted_is_refused_by_name(settings, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        stored_precision(settings, "x")


def test_a_format_that_the_config_does_not_say(model, capsys) -> None:
    options = ("--target-modules", "q_proj", "--seq-len", "8", "--precision", "awq")
    assert main(["memory", str(model(None)), *options]) == 2
    assert "has no quantization_config" in capsys.readouterr().err


def test_a_prequantized_llama_is_nf4_with_double_quantization(capsys) -> None:
    """unslothai/unsloth issue 1093: 5.21 GiB of weights where bf16 has 14.96, a step of 6.43."""
    found = _said(
        capsys, FIELD / "llama3-8b-bnb-4bit", "--target-modules", "all-linear", "--rank", "8",
        "--seq-len", "512", "--gradient-checkpointing",
    )  # fmt: skip
    assert found["precision"] == "nf4-dq"
    assert found["trainable_parameters"] == 20_971_520
    assert found["breakdown"]["weights"] / GIB == pytest.approx(5.21, abs=0.01)
    assert found["peak_allocated_bytes"] / GIB == pytest.approx(6.43, abs=0.01)


@pytest.mark.slow
def test_a_70b_in_awq_starts_from_37_gib(capsys) -> None:
    """hiyouga/LlamaFactory issue 6827; the published checkpoint is 39.8 GB."""
    case = FIELD / "llama3.3-70b-awq"
    adapter = str(case / "adapter_config.json")
    found = _said(capsys, case, "--adapter", adapter, "--seq-len", "2048",
                  "--gradient-checkpointing")  # fmt: skip
    assert found["trainable_parameters"] == 103_546_880
    assert found["breakdown"]["weights"] == pytest.approx(39.8e9, rel=0.005)


def test_the_layers_of_a_70b_in_awq_by_hand() -> None:
    """The same from the shapes alone, without a trace."""
    config = json.loads((FIELD / "llama3.3-70b-awq" / "config.json").read_text())
    stored = read_stored(config["quantization_config"], "x")
    wide, inner, narrow = 8192, 28672, 1024
    shapes = [(wide, wide)] * 2 + [(narrow, wide)] * 2 + [(inner, wide)] * 2 + [(wide, inner)]
    layers = 80 * sum(stored.layer_bytes(*shape) for shape in shapes)
    assert layers + 2 * 2 * 128256 * wide == pytest.approx(39.8e9, rel=0.005)


def test_roberta_as_published(capsys) -> None:
    """huggingface/peft issue 675: about 12 GB seen, 8 to 11 GiB are plausible in fp32."""
    found = _said(
        capsys, FIELD / "roberta-large-memory", "--task-type", "SEQ_CLS", "--target-modules",
        "query,value", "--rank", "8", "--precision", "fp32", "--batch-size", "64",
        "--seq-len", "96",
    )  # fmt: skip
    assert 8 <= found["peak_allocated_bytes"] / GIB <= 11


@pytest.mark.evidence
def test_a_vision_language_model_has_a_figure(capsys) -> None:
    """Asked of Qwen2.5-VL-3B (`vlm-memory`): 3,754,622,976 weights of two bytes, and the adapters
    of `q_proj` and `v_proj` in four; the allocator's blocks are up to a MiB larger."""
    case = FIELD / "qwen2.5-vl-3b-llm-only"
    asked = ("--target-modules", "q_proj,v_proj", "--rank", "8", "--seq-len", "1024")
    text, pictures = (_said(capsys, case, *asked, *more) for more in ((), ("--images", "1")))
    assert text["breakdown"]["weights"] == pytest.approx(2 * 3_754_622_976, rel=0.02)
    assert text["breakdown"]["adapters"] == pytest.approx(4 * text["trainable_parameters"], rel=0.1)
    assert text["peak_allocated_bytes"] < pictures["peak_allocated_bytes"]
