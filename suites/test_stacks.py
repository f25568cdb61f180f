"""Stacks: which towers a model has, held against its own configuration."""

from __future__ import annotations

import pytest

from bench.atlas.build import build_model
from bench.models.modules import read_table

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
