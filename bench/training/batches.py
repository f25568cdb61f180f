"""Batches of more than text, built from what the model's `forward` asks for: images, audio, pairs.

Every tensor is drawn from the step's seed; shapes follow from the model's config alone, so that no
processor has to be downloaded. b and s are the batch size and the sequence length.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from bench.compat import private
from bench.errors import BenchError

Batch = dict[str, torch.Tensor]

IMAGE_SIDE = 448
"""Pixels of a square image, for the models that take images of any size."""
MASKED_SHARE = 0.15
"""Of a masked language model's tokens, after BERT."""
_WORDS_PER_FRAME = 4  # frames of audio for each label of a CTC model


def asked_for(config: Any, auto_class: str) -> frozenset[str]:
    """The names of the arguments of the `forward` that `auto_class` builds for a config."""
    import transformers

    private("models of a class")
    mapping = getattr(transformers, auto_class)._model_mapping
    built = mapping[type(config)]
    built = built[0] if isinstance(built, (tuple, list)) else built
    return frozenset(inspect.signature(built.forward).parameters)


def with_images(
    batch: Batch, config: Any, auto_class: str, images: int, generator: torch.Generator
) -> Batch:
    """A text batch with `images` images at the start of every sequence, behind its first token.

    `pixel_values` is (b · images, channels, height, width); for models that take images of any
    size, as Qwen2-VL does, (patches, values of a patch), with `image_grid_thw` (b · images, 3).
    Raises BenchError where the model takes none, or where they do not fit into the sequence.
    """
    asked = asked_for(config, auto_class)
    vision = getattr(config, "vision_config", None)
    if vision is None or "pixel_values" not in asked:
        raise BenchError(f"--images {images}: {config.model_type} takes no images")
    ids = batch["input_ids"]
    b, s = ids.shape
    given: Batch = {}
    if "image_grid_thw" in asked:
        merge = vision.spatial_merge_size
        side = IMAGE_SIDE // (vision.patch_size * merge) * merge  # patches
        frames = vision.temporal_patch_size
        channels = getattr(vision, "in_channels", None) or vision.in_chans
        values = channels * frames * vision.patch_size**2
        given["pixel_values"] = torch.randn(b * images * side**2, values, generator=generator)
        given["image_grid_thw"] = torch.tensor([[1, side, side]] * (b * images))
        each = (side // merge) ** 2
    else:
        side = vision.image_size
        shape = (b * images, getattr(vision, "num_channels", 3), side, side)
        given["pixel_values"] = torch.randn(shape, generator=generator)
        each = _placeholders(config, vision)
    if 1 + images * each >= s:
        raise BenchError(
            f"--images {images}: they take {images * each} of a sequence's tokens "
            f"({each} each), and a sequence has {s}: give a longer --seq-len"
        )
    token = getattr(config, "image_token_id", None)
    token = config.image_token_index if token is None else token
    place = torch.zeros(b, s, dtype=torch.bool)
    place[:, 1 : 1 + images * each] = True
    if bool((batch["attention_mask"][place] == 0).any()):
        raise BenchError(
            f"--images {images}: their {images * each} tokens do not fit into the shorter "
            f"sequences of a padded batch of {s} tokens: give a longer --seq-len"
        )
    # A word drawn by chance that means an image becomes its neighbour, as input and as label.
    ids, labels = (torch.where(t == token, t - 1, t) for t in (ids, batch["labels"]))
    given["input_ids"] = ids.masked_fill(place, token)
    given["labels"] = labels.masked_fill(place, -100)
    for kinds in ("token_type_ids", "mm_token_type_ids"):
        if kinds in asked:
            given[kinds] = place.long()
    return {**batch, **given}


def _placeholders(config: Any, vision: Any) -> int:
    """Tokens that stand for one image of the vision tower's own size."""
    for name in ("mm_tokens_per_image", "image_seq_length", "image_seq_len"):
        if (count := getattr(config, name, None)) is not None:
            return int(count)
    patches = (vision.image_size // vision.patch_size) ** 2
    return int(patches // (getattr(config, "scale_factor", None) or 1) ** 2)


def audio_batch(
    config: Any, auto_class: str, shape: tuple[int, int], padded: bool, generator: torch.Generator
) -> Batch:
    """Audio and its transcript: `input_features` (b, mel bins, frames) of the encoder's one length
    and `labels` (b, s), or `input_values` (b, samples) of s frames and a quarter as many labels;
    `labels` (b,) for an audio classifier."""
    asked = asked_for(config, auto_class)
    b, s = shape
    first_word = min(10, getattr(config, "vocab_size", 20) // 2)

    def words(length: int) -> torch.Tensor:
        return torch.randint(first_word, config.vocab_size, (b, length), generator=generator)

    lengths = torch.full((b,), s)
    if padded:
        lengths[1:] = torch.randint(max(1, s // 2), s + 1, (b - 1,), generator=generator)
    if "input_features" in asked and hasattr(config, "max_source_positions"):
        frames = config.max_source_positions
        if hasattr(config, "input_feat_per_channel"):  # Speech2Text's, frame by frame
            size = (b, frames, config.input_feat_per_channel)
        else:
            size = (b, config.num_mel_bins, 2 * frames)  # the encoder halves them
        batch = {"input_features": torch.randn(size, generator=generator)}
        labels = words(s).masked_fill(torch.arange(s) >= lengths[:, None], -100)
    elif "input_values" in asked and hasattr(config, "conv_kernel"):
        samples = _samples(config, s)
        batch = {"input_values": torch.randn(b, samples, generator=generator)}
        if padded:
            kept = torch.tensor([_samples(config, int(n)) for n in lengths])
            batch["attention_mask"] = (torch.arange(samples) < kept[:, None]).long()
        spoken = max(1, s // _WORDS_PER_FRAME)
        labels = words(spoken) if auto_class == "AutoModelForCTC" else torch.empty(0)
        if auto_class == "AutoModelForCTC" and padded:
            heard = (lengths // _WORDS_PER_FRAME).clamp(min=1)
            labels = labels.masked_fill(torch.arange(spoken) >= heard[:, None], -100)
    else:
        raise BenchError(
            f"{config.model_type}: no batch of audio is known for its inputs "
            f"({', '.join(sorted(asked & {'input_features', 'input_values'})) or 'none of audio'})"
        )
    if auto_class == "AutoModelForAudioClassification":
        labels = torch.randint(0, config.num_labels, (b,), generator=generator)
    return {**batch, "labels": labels}


def _samples(config: Any, frames: int) -> int:
    """Samples of audio that the convolutions of a feature encoder make so many frames of."""
    length = frames
    for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
        length = (length - 1) * int(stride) + int(kernel)
    return length


def masked(ids: torch.Tensor, mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Labels of a masked language model: a share of the tokens, the first of all in any case."""
    chosen = torch.rand(ids.shape, generator=generator) < MASKED_SHARE
    chosen[0, 0] = True
    return ids.masked_fill(~chosen | (mask == 0), -100)


def ended(ids: torch.Tensor, lengths: torch.Tensor, end: int | None) -> torch.Tensor:
    """Texts (b, s) that end in the token `end`, once each: a classifier with a decoder, as BART's,
    reads the text at that token."""
    if end is None:
        return ids
    within = torch.where(ids == end, abs(end - 1), ids)
    return within.scatter(1, lengths[:, None] - 1, end)


def contrastive_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The loss of sentence embeddings over pairs: every other pair's second sentence is a negative.

    As MultipleNegativesRankingLoss of sentence-transformers: each side is embedded by itself (mean
    of the tokens' states, padding left out), both are normalised, and their cosines, 20 times, are
    scores of a cross entropy whose right answer is the diagonal. The batch holds each side's
    `input_ids` and `attention_mask` (b, s), the second side's names behind `positive_`.
    """
    embedded = []
    for side in ("", "positive_"):
        mask = batch[f"{side}attention_mask"]
        states = model(input_ids=batch[f"{side}input_ids"], attention_mask=mask)[0]
        weights = mask.unsqueeze(-1).expand(states.size()).to(states.dtype)
        total = torch.sum(states * weights, 1)
        embedded.append(total / torch.clamp(weights.sum(1), min=1e-9))
    anchors, positives = (torch.nn.functional.normalize(e, p=2, dim=1) for e in embedded)
    scores = torch.mm(anchors, positives.transpose(0, 1)) * 20.0
    right = torch.arange(len(scores), device=scores.device)
    loss: torch.Tensor = torch.nn.functional.cross_entropy(scores, right)
    return loss
