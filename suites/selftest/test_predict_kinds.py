"""Models of every kind that has a loss: predicted against torch's profiler on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from matrices import matrix
from measure_support import kept_out_of_collections, predicted
from test_measure_memory import profiled

from bench.errors import BenchError
from bench.training.cases import Case, StepOptions

_TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 500, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
_TOWER = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
_ENCODER = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
}  # fmt: skip
_QWEN = {
    "model_type": "qwen2_5_vl", "image_token_id": 490, "video_token_id": 491,
    "vision_start_token_id": 492, "vision_end_token_id": 493,
    "text_config": {
        **_TEXT, "model_type": "qwen2_5_vl_text",
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
    },
    "vision_config": {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
        "out_hidden_size": 64, "fullatt_block_indexes": [1], "window_size": 112,
    },
}  # fmt: skip
_LLAVA = {
    "model_type": "llava", "image_token_index": 490, "image_seq_length": 16,
    "text_config": {**_TEXT, "model_type": "llama"},
    "vision_config": {**_TOWER, "model_type": "clip_vision_model", "projection_dim": 16},
}  # fmt: skip
_GEMMA3 = {
    "model_type": "gemma3", "image_token_id": 490, "boi_token_index": 491, "eoi_token_index": 492,
    "mm_tokens_per_image": 4,
    "text_config": {
        **_TEXT, "model_type": "gemma3_text", "head_dim": 16, "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "vision_config": {**_TOWER, "model_type": "siglip_vision_model"},
}  # fmt: skip
_WHISPER = {
    "model_type": "whisper", "d_model": 64, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128, "vocab_size": 500, "max_source_positions": 60,
    "max_target_positions": 64, "num_mel_bins": 20, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 3,
}  # fmt: skip
_SPEECH2TEXT = {
    **{k: v for k, v in _WHISPER.items() if k != "num_mel_bins"}, "model_type": "speech_to_text",
    "input_feat_per_channel": 20, "conv_channels": 32,
}  # fmt: skip
_WAV2VEC2 = {
    **_ENCODER, "model_type": "wav2vec2", "vocab_size": 32, "conv_dim": [32] * 7,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "layerdrop": 0.1,
}  # fmt: skip
_BERT = {**_ENCODER, "model_type": "bert", "vocab_size": 500, "max_position_embeddings": 130}
_ROBERTA = {**_BERT, "model_type": "roberta"}

# Name → config, auto class, target modules, options of the step.
MODELS: dict[str, tuple[dict[str, Any], str, list[str], dict[str, Any]]] = {
    "qwen": (
        _QWEN, "AutoModelForImageTextToText", ["q_proj", "v_proj"], {"seq_len": 280, "images": 1},
    ),
    "qwen-tower": (
        _QWEN, "AutoModelForImageTextToText", ["q_proj", "qkv"], {"seq_len": 280, "images": 1},
    ),
    "llava": (
        _LLAVA, "AutoModelForImageTextToText", ["q_proj", "v_proj"], {"seq_len": 64, "images": 2},
    ),
    "gemma3": (
        _GEMMA3, "AutoModelForImageTextToText", ["q_proj", "v_proj"], {"seq_len": 64, "images": 2},
    ),
    "llava-text": (_LLAVA, "AutoModelForImageTextToText", ["q_proj", "v_proj"], {}),
    "whisper": (_WHISPER, "AutoModelForSpeechSeq2Seq", ["q_proj", "v_proj"], {}),
    "speech2text": (_SPEECH2TEXT, "AutoModelForSpeechSeq2Seq", ["q_proj", "v_proj"], {}),
    "wav2vec2": (_WAV2VEC2, "AutoModelForCTC", ["q_proj", "v_proj"], {"seq_len": 49}),
    "wav2vec2-classes": (
        _WAV2VEC2, "AutoModelForAudioClassification", ["q_proj", "v_proj"], {"seq_len": 49},
    ),
    "roberta": (_ROBERTA, "AutoModelForMaskedLM", ["query", "value"], {}),
    "bert": (_BERT, "AutoModel", ["query", "value"], {}),
}  # fmt: skip


def kind_case(name: str, precision: str = "fp32", **options: Any) -> Case:
    """The tiny model called `name` with adapters of rank 4 on two names."""
    config, auto_class, targets, own = MODELS[name]
    adapter = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "target_modules": targets}
    step = StepOptions(**{"seq_len": 32, **own, **options})
    return Case(name, config, auto_class, "small", adapter, precision, step)


# Qwen's patches are a convolution in three dimensions, which without oneDNN (as the reference runs
# in halves) unfolds its input on the CPU: in float32 it does not.
CASES = [
    kind_case(name, precision, **options)
    for name in MODELS
    for precision, options in (
        ("fp32", {}),
        ("fp32" if name.startswith("qwen") else "bf16", {"padded": True}),
        ("fp32" if name.startswith("qwen") else "bf16", {"gradient_checkpointing": True}),
    )
]


@pytest.fixture(scope="module", autouse=True)
def imported() -> Iterator[None]:
    yield from kept_out_of_collections()


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("case", matrix(CASES), ids=lambda case: case.id)
def test_every_kind_is_as_the_profiler_saw_it(case: Case) -> None:
    found, reference = predicted(case), profiled(case)
    assert found.loaded_bytes == pytest.approx(reference.loaded_bytes, rel=1e-3)
    peaks = found.first_step_peak_allocated_bytes, found.peak_allocated_bytes
    expected = reference.first_step_peak_bytes, reference.steady_step_peak_bytes
    assert peaks == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_is_predicted_for_cuda(name: str) -> None:
    from bench.predict import predict

    found = predict(kind_case(name, "bf16"))
    assert sum(found.breakdown.values()) == found.peak_allocated_bytes > 0


def test_images_cost_what_they_are() -> None:
    """Two more images of LLaVA: their tokens replace text, so what grows is the tower's part."""
    one, three = (predicted(kind_case("llava", images=n)) for n in (1, 3))
    assert three.peak_allocated_bytes > one.peak_allocated_bytes
    assert three.tokens_per_step == one.tokens_per_step == 2 * 64


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("roberta", {"images": 1}, "roberta takes no images"),
        ("llava", {"images": 4}, "they take 64 of a sequence's tokens .16 each., and a sequence"),
        (
            "qwen",
            {"seq_len": 300, "padded": True, "batch_size": 8},
            "the shorter sequences",
        ),
    ],
)
def test_images_that_do_not_go_are_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(BenchError, match=said):
        predicted(kind_case(name, **options))


def test_the_contrastive_loss_is_that_of_its_formula() -> None:
    """By hand, over the model's own states: rows are anchors, the diagonal is right."""
    import torch

    from bench.training.loading import load
    from bench.training.step import output_of

    training = load(kind_case("bert"))
    model = training.model.eval()
    b = training.batch
    with torch.no_grad():
        loss = output_of(model, b).loss
        sides = [
            model(input_ids=b[f"{side}input_ids"], attention_mask=b[f"{side}attention_mask"])[0]
            for side in ("", "positive_")
        ]
    a, p = (states.mean(1) / states.mean(1).norm(dim=1, keepdim=True) for states in sides)
    scores = (20 * a @ p.T).tolist()
    by_hand = 0.0
    for row, values in enumerate(scores):
        total = sum(torch.tensor(v).exp().item() for v in values)
        by_hand -= torch.log(torch.tensor(values[row]).exp() / total).item() / len(scores)
    assert loss.item() == pytest.approx(by_hand, rel=1e-4)
