"""The training step: every task, precision and option trains for real."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
from matrices import matrix
from measure_support import MODELS, tiny_case

from bench.models.precision import PRECISIONS
from bench.training.cases import OPTIMIZERS, Case, StepOptions

GPT2 = {
    "model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 500,
    "n_positions": 128, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(case: Case, steps: int = 6):
    from bench.training.loading import load
    from bench.training.loops import run_step

    training = load(case)
    losses = [run_step(training).item() for _ in range(steps)]
    assert all(map(math.isfinite, losses))
    return training, losses


@pytest.mark.parametrize("name", MODELS)
def test_every_task_trains(name: str) -> None:
    training, losses = train(tiny_case(name, learning_rate=1e-2, padded=name != "vit"))
    assert losses[-1] < losses[0]
    assert training.adapted_layers == MODELS[name][3]


@pytest.mark.parametrize(("name", "precision"), matrix(product(("distilbert", "phi3"), PRECISIONS)))
def test_every_precision_trains_as_what_it_says(name: str, precision: str) -> None:
    import torch

    training, losses = train(tiny_case(name, precision, learning_rate=1e-2))
    assert losses[-1] < losses[0]
    kind = PRECISIONS[precision]
    assert training.quantized_layers == (
        0 if not kind.quantized else 12 if name == "distilbert" else 8
    )
    quantized = {"int8": torch.int8, "nf4": torch.uint8, "fp4": torch.uint8}
    layers = [
        module
        for module in training.model.modules()
        if type(module).__name__ in {"Linear8bitLt", "Linear4bit"}
        and "lora" not in type(module).__module__
    ]
    assert len(layers) == training.quantized_layers
    for layer in layers:
        logical = layer.in_features * layer.out_features
        assert layer.weight.dtype == quantized[precision.removesuffix("-dq")]
        assert layer.weight.numel() == logical * kind.bits // 8
        if kind.bits == 4:
            assert layer.weight.quant_state.quant_type == kind.quant_type
            assert layer.weight.quant_state.nested == kind.double_quant
    for module_name, parameter in training.model.named_parameters():
        if parameter.requires_grad:
            wide = "lora" in module_name or kind.compute == "float16"
            assert parameter.dtype == (torch.float32 if wide else getattr(torch, kind.compute))
        elif parameter.is_floating_point():
            assert parameter.dtype == getattr(torch, kind.compute), module_name
    assert (training.scaler is not None) == (precision == "fp16")


@pytest.mark.parametrize("bias", ["lora_only", "all"])
@pytest.mark.parametrize("name", ["opt", "gpt2"])
def test_biases_train_in_float16_as_they_do_in_float32(name: str, bias: str) -> None:
    """PEFT leaves the base model's biases in float16, whose gradients a GradScaler refuses."""
    import torch

    case = tiny_case("opt", learning_rate=1e-2)
    if name == "gpt2":  # Conv1D instead of Linear
        case = replace(case, config=GPT2, adapter={**case.adapter, "target_modules": ["c_attn"]})
    case = replace(case, adapter={**case.adapter, "bias": bias})
    wide, expected = train(case)
    half, losses = train(replace(case, precision="fp16"))
    assert losses == pytest.approx(expected, abs=0.01)
    assert losses[-1] < losses[0]
    assert half.trainable_parameters == wide.trainable_parameters
    dtypes = {(p.requires_grad, p.dtype) for p in half.model.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.float16)}


def test_heads_and_output_embeddings_stay_unquantized() -> None:
    training, _ = train(tiny_case("phi3", "nf4"), steps=1)
    kinds = {name: type(module).__name__ for name, module in training.model.named_modules()}
    assert kinds["base_model.model.lm_head.original_module"] == "Linear"
    training, _ = train(tiny_case("distilbert", "int8"), steps=1)
    kinds = {name: type(module).__name__ for name, module in training.model.named_modules()}
    assert kinds["base_model.model.pre_classifier.original_module"] == "Linear"


def test_quantized_weights_are_close_to_the_full_ones() -> None:
    """The same seed draws the same layer, so 4-bit differs from bf16 by rounding alone."""
    import torch

    from bench.training.loading import make_config, random_weights

    case = tiny_case("opt", "nf4")
    torch.manual_seed(0)
    model = random_weights(case, make_config(case), "cpu")
    import bitsandbytes

    weight = model.model.decoder.layers[0].fc1.weight
    wide = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).float()
    assert wide.shape == (256, 64)
    assert wide.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("precision", ["int8", "nf4"])
@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_quantized_weights_are_drawn_as_transformers_draws_the_full_ones(
    name: str, precision: str
) -> None:
    """T5 scales each kind of layer by its width, GPT-2 two projections by the depth."""
    import torch
    import transformers
    from peft.utils.integrations import dequantize_module_weight

    from bench.training.loading import make_config, quantized_layers, random_weights

    case = tiny_case(name if name == "t5" else "opt", precision)
    if name == "gpt2":
        case = replace(case, config=GPT2)
    config = make_config(case)
    theirs = getattr(transformers, case.auto_class).from_config(config)
    torch.manual_seed(0)
    ours = random_weights(case, config, "cpu")
    names = {module: name for name, module in ours.named_modules()}
    deviations = {}
    for layer in quantized_layers(ours):
        expected = theirs.get_submodule(names[layer]).weight.std().item()
        found = dequantize_module_weight(layer).float().std().item()
        assert found == pytest.approx(expected, rel=0.1), names[layer]
        deviations[names[layer].rpartition(".")[2]] = expected
    assert max(deviations.values()) > 1.5 * min(deviations.values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_trains(optimizer: str) -> None:
    import torch

    if optimizer == "paged-adamw-8bit" and not torch.cuda.is_available():
        pytest.skip("paged optimizer state needs a GPU's unified memory")
    rate = 1e4 if optimizer == "sgd" else 1e-2  # plain gradients are small: B begins as zeros
    _, losses = train(tiny_case("opt", "bf16", optimizer=optimizer, learning_rate=rate))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True},
        {"kbit_preparation": True},
        {"kbit_preparation": True, "gradient_checkpointing": True},
        {"attention": "eager", "padded": True},
    ],
    ids="-".join,
)
@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_options_train(precision: str, options: dict) -> None:
    import torch

    training, losses = train(tiny_case("opt", precision, learning_rate=1e-2, **options))
    assert losses[-1] < losses[0]
    norm = next(p for n, p in training.model.named_parameters() if "layer_norm.weight" in n)
    wide = options.get("kbit_preparation", False)
    assert norm.dtype == (torch.float32 if wide else torch.bfloat16)


def test_checkpointing_and_accumulation_do_not_change_the_loss() -> None:
    _, plain = train(tiny_case("opt", learning_rate=1e-2))
    _, checkpointed = train(tiny_case("opt", learning_rate=1e-2, gradient_checkpointing=True))
    assert checkpointed == pytest.approx(plain, rel=1e-5)


def test_tied_weights_stay_tied() -> None:
    training, _ = train(tiny_case("opt", "nf4"), steps=1)
    model = training.model.base_model.model
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_batches_are_fixed_by_the_seed() -> None:
    import torch

    from bench.training.loading import make_config
    from bench.training.step import IGNORED_LABEL, make_batch

    case = tiny_case("opt", padded=True, batch_size=4, seq_len=50)
    config = make_config(case)
    one, two = (make_batch(config, case.auto_class, case.step) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = make_batch(config, case.auto_class, StepOptions(batch_size=4, seq_len=50, seed=1))
    assert not torch.equal(one["input_ids"], other["input_ids"])
    mask = one["attention_mask"]
    assert mask[0].all()  # one sequence is full, so that the batch has its full length
    assert not mask[1:].all()
    assert (one["labels"][mask == 0] == IGNORED_LABEL).all()
    assert make_batch(config, case.auto_class, case.step, "meta")["input_ids"].is_meta


@pytest.mark.parametrize("name", ["opt", "t5", "distilbert-tokens"])
def test_no_label_is_padding(name: str) -> None:
    """Where the mask is 0 nothing is learned, and everywhere else something is."""
    from bench.training.loading import make_config
    from bench.training.step import IGNORED_LABEL, make_batch

    case = tiny_case(name, padded=True, batch_size=4, seq_len=24)
    batch = make_batch(make_config(case), case.auto_class, case.step)
    assert ((batch["labels"] == IGNORED_LABEL) == (batch["attention_mask"] == 0)).all()
    assert not batch["attention_mask"].all()


def kind_batch(name: str, **options):
    from test_predict_kinds import kind_case

    from bench.training.loading import make_config
    from bench.training.step import make_batch

    case = kind_case(name, batch_size=4, padded=True, **options)
    config = make_config(case)
    return config, make_batch(config, case.auto_class, case.step)


@pytest.mark.parametrize("name", ["qwen", "llava"])
def test_no_label_is_an_image_or_padding(name: str) -> None:
    """A picture's places are the model's own count of them, and nothing learns to say them."""
    config, batch = kind_batch(name, seq_len=600 if name == "qwen" else 80)
    ids, labels, mask = batch["input_ids"], batch["labels"], batch["attention_mask"]
    places = ids == config.image_token_id
    # Qwen joins 2 × 2 of the 32 × 32 patches of 448 pixels; the other config says 16 an image.
    assert (places.sum(1) == {"qwen": 16**2, "llava": 2 * 16}[name]).all()
    assert not mask.all()
    assert ((labels == -100) == (places | (mask == 0))).all()
    assert (labels == ids)[labels != -100].all()


@pytest.mark.parametrize("seq_len", [2, 24])
def test_no_label_of_speech_is_padding(seq_len: int) -> None:
    """A transcript is words and then nothing; each has its own length, the first all of it."""
    _, batch = kind_batch("whisper", seq_len=seq_len)
    labels = batch["labels"]
    lengths = (labels != -100).sum(1)
    assert lengths[0] == seq_len
    assert seq_len // 2 <= lengths[1:].min() < seq_len
    for row, length in zip(labels, lengths, strict=True):
        assert (row[:length] >= 10).all()
        assert (row[length:] == -100).all()


def test_labels_of_ctc_are_as_long_as_what_is_heard() -> None:
    """A label for every four frames that transformers' own encoder makes of the samples kept."""
    import torch
    import transformers

    config, batch = kind_batch("wav2vec2")
    model = transformers.Wav2Vec2Model(config)
    frames = model._get_feat_extract_output_lengths(batch["attention_mask"].sum(1))
    assert frames.tolist()[0] == 49
    assert frames.min() < 49
    kept = torch.arange(49 // 4) < frames[:, None] // 4
    assert ((batch["labels"] != -100) == kept).all()


def test_masked_labels_are_words() -> None:
    _, batch = kind_batch("roberta", seq_len=64)
    learned = batch["labels"] != -100
    assert learned[0, 0]
    assert not (learned & (batch["attention_mask"] == 0)).any()
    assert (batch["labels"] == batch["input_ids"])[learned].all()
    assert 0.05 < learned.sum() / batch["attention_mask"].sum() < 0.3  # BERT's share is 0.15


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-fused", "adamw-foreach"])
def test_weights_decay(optimizer: str) -> None:
    """AdamW without a gradient shrinks each weight by rate × 0.01 and no more."""
    import torch

    from bench.training.step import make_optimizer

    layer = torch.nn.Linear(4, 4)
    before = [p.detach().clone() for p in layer.parameters()]
    made = make_optimizer(layer, StepOptions(optimizer=optimizer, learning_rate=0.5))
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    for old, new in zip(before, layer.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old * (1 - 0.5 * 0.01))


def test_the_step_marks_its_phases() -> None:
    from bench.training.loading import load
    from bench.training.step import training_step

    for precision in ("fp32", "fp16"):
        t = load(tiny_case("opt", precision))
        marks: list[str] = []
        training_step(t.model, t.batch, t.optimizer, t.scaler, marks.append)
        assert marks == ["forward", "backward", "optimizer", "end"]
        assert all(p.grad is None for p in t.model.parameters())
