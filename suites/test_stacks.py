"""Stacks: which towers a model has, held against its own configuration."""

from __future__ import annotations

import pytest

from bench.adapters.config import AdapterConfig
from bench.atlas.build import build_model
from bench.check.gate import HazardGate
from bench.models.architectures import Model
from bench.models.modules import read_table
from bench.reports.ledger import ledger_text
from bench.scenarios.subjects import Subject
from bench.targets import match

# Model type → its stacks by hand: kind, module, and where its configuration holds the depth.
STACKS: dict[str, list[tuple[str, str, str]]] = {
    "llama": [("language", "model", "num_hidden_layers")],
    "bert": [("language", "bert", "num_hidden_layers")],
    "nemotron_h": [("language", "model", "num_hidden_layers")],
    "zamba2": [("language", "model", "num_hidden_layers")],
    "t5": [("encoder", "encoder", "num_layers"), ("decoder", "decoder", "num_decoder_layers")],
    "bart": [
        ("encoder", "model.encoder", "encoder_layers"),
        ("decoder", "model.decoder", "decoder_layers"),
    ],
    "whisper": [
        ("encoder", "model.encoder", "encoder_layers"),
        ("decoder", "model.decoder", "decoder_layers"),
    ],
    "seamless_m4t": [
        ("encoder", "text_encoder", "encoder_layers"),
        ("decoder", "text_decoder", "decoder_layers"),
    ],
    "vit": [("vision", "vit", "num_hidden_layers")],
    "wav2vec2": [("audio", "wav2vec2", "num_hidden_layers")],
    "clap": [
        ("language", "text_model", "text_config.num_hidden_layers"),
        ("connector", "text_projection", ""),
        ("audio", "audio_model", "audio_config.num_hidden_layers"),
        ("connector", "audio_projection", ""),
    ],
    "llava": [
        ("vision", "model.vision_tower", "vision_config.num_hidden_layers"),
        ("connector", "model.multi_modal_projector", ""),
        ("language", "model.language_model", "text_config.num_hidden_layers"),
    ],
    "qwen3_vl": [
        ("vision", "model.visual", "vision_config.depth"),
        ("connector", "model.visual.merger", ""),
        ("connector", "model.visual.deepstack_merger_list", "3"),
        ("language", "model.language_model", "text_config.num_hidden_layers"),
    ],
    "blip-2": [
        ("vision", "vision_model", "vision_config.num_hidden_layers"),
        ("connector", "qformer", "qformer_config.num_hidden_layers"),
        ("connector", "language_projection", ""),
        ("language", "language_model", "text_config.num_hidden_layers"),
    ],
    "idefics": [
        ("language", "model", "64"),
        ("vision", "model.vision_model", "vision_config.num_hidden_layers"),
    ],
    "qwen2_5_omni": [
        ("audio", "thinker.model.audio_tower", "thinker_config.audio_config.encoder_layers"),
        ("vision", "thinker.model.visual", "thinker_config.vision_config.depth"),
        ("language", "thinker.model.language_model",
         "thinker_config.text_config.num_hidden_layers"),
        ("decoder", "talker", "talker_config.num_hidden_layers"),
        ("audio", "token2wav.code2wav_dit_model",
         "token2wav_config.dit_config.num_hidden_layers"),
        ("audio", "token2wav.code2wav_bigvgan_model", ""),
    ],
}  # fmt: skip


@pytest.mark.parametrize("model_type", STACKS)
def test_stacks_and_their_depths(model_type: str) -> None:
    model, _ = build_model(model_type)
    table = read_table(model)
    expected = []
    for kind, prefix, depth in STACKS[model_type]:
        found = model.config
        for key in depth.split("."):
            found = getattr(found, key, None) if not depth.isdigit() else int(depth)
        expected.append((kind, prefix, found if depth else 0))
    assert [(s.kind, s.prefix, len(s.layers)) for s in table.stacks] == expected


SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 32,
         "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "image_size": 8,
         "num_attention_heads": 2, "patch_size": 4}  # fmt: skip
QWEN_VISION = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2,
               "out_hidden_size": 16, "patch_size": 4, "fullatt_block_indexes": [1]}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
SPOKEN = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24,
          "num_mel_bins": 8, "max_source_positions": 8}  # fmt: skip
FED = {
    "llava": {"text_config": {**SMALL, "model_type": "llama"},
              "vision_config": {**TOWER, "model_type": "clip_vision_model"},
              "image_token_index": 31},
    "internvl": {"text_config": {**SMALL, "model_type": "qwen2"},
                 "vision_config": {**TOWER, "image_size": [8, 8], "patch_size": [4, 4]},
                 "image_token_id": 31},
    "qwen2_5_vl": {"text_config": {**SMALL, "rope_parameters": ROPE},
                   "vision_config": QWEN_VISION, "image_token_id": 30, "video_token_id": 31},
    "qwen2_audio": {"text_config": {**SMALL, "model_type": "qwen2"},
                    "audio_config": {**SPOKEN, "model_type": "qwen2_audio_encoder"},
                    "audio_token_index": 31},
}  # fmt: skip


@pytest.mark.parametrize("model_type", FED)
def test_a_batch_of_text_feeds_what_says_so(model_type: str) -> None:
    """A real step on text alone: the linear layers of the other stacks get no gradient."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForImageTextToText,
        Qwen2AudioForConditionalGeneration,
    )

    config = AutoConfig.for_model(model_type, **FED[model_type])
    torch.manual_seed(0)
    if model_type == "qwen2_audio":
        model = Qwen2AudioForConditionalGeneration(config)
    else:
        model = AutoModelForImageTextToText.from_config(config)
    table = read_table(model)
    ids = torch.arange(3, 11)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    by_name = dict(model.named_parameters(remove_duplicate=False))
    weights = [m.name for m in table.modules if m.kind == "linear"]
    assert {table.stack_of(name).text for name in weights} == {True, False}
    for name in weights:
        fed = by_name[f"{name}.weight"].grad is not None
        assert fed == table.stack_of(name).text, name


def test_the_output_embedding_is_a_head_whatever_its_name() -> None:
    """Whisper calls it proj_out: a scenario that adapts or saves the head has it there."""
    from small_types import small, small_types

    from bench.models.roles import HEAD, role_in_table
    from bench.scenarios.scenario import Scenario

    for each in small_types():
        if name := each.table.output_embedding:
            assert role_in_table(each.table, name) == HEAD, each.label
    assert small("whisper-SpeechSeq2Seq").table.output_embedding == "proj_out"
    config = {"model_type": "whisper", "d_model": 48, "encoder_layers": 1, "decoder_layers": 1}
    model = Model("mine", config, "AutoModelForSpeechSeq2Seq")
    assert model.role_of("proj_out") == HEAD
    saved = Scenario("it", roles=("query",), saved_roles=("head",)).adapter(model)
    assert saved.modules_to_save == ("proj_out",)


def test_where_no_linear_weight_is_left_nothing_is_missed() -> None:
    """ResNet is convolutions, and one classifier that is trained whole here."""
    config = {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16], "depths": [1]}
    model = Model("resnet", config, "AutoModelForImageClassification")
    whole = AdapterConfig(("convolution",), r=2, modules_to_save=("classifier",))
    gate = HazardGate(minimum_coverage=0.5)
    for adapter, low in ((whole, False), (AdapterConfig(("convolution",), r=2), True)):
        ledger = gate.judge(match(model.table, adapter, model.role_of))
        assert ("low-coverage" in {h.code for h in ledger.hazards}) == low
        assert ("low-coverage" in gate.failing(ledger)) == low
        said = ledger_text(Subject(model, "own", adapter), ledger, None)
        assert ("no linear weight left to cover" in said) == (not low)


def test_a_layer_held_out_by_its_number_is_meant() -> None:
    """`part-of-the-layers` is of layers that lack what an entry names, and of no others."""
    text = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
            "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
    mixer = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "attn_layer_indices": [1]}
    plain = Model("plain", {"model_type": "llama", **text}, "AutoModelForCausalLM")
    hybrid = Model("hybrid", {"model_type": "bamba", **text, **mixer}, "AutoModelForCausalLM")
    held = AdapterConfig(r".*\.(q|v)_proj", exclude_modules=r".*layers\.2\..*")
    for model, told in ((plain, False), (hybrid, True)):
        codes = {hazard.code for hazard in match(model.table, held).hazards}
        assert ("part-of-the-layers" in codes) == told
