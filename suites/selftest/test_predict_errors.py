"""What cannot be predicted is an error that names it, with status 2: never a guess."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from measure_support import tiny_case
from model_folders import write_model

from bench.cli import main
from bench.errors import BenchError


@pytest.fixture
def llama(tmp_path: Path) -> str:
    return str(write_model(tmp_path, max_position_embeddings=64))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], llama: str) -> Callable[..., str]:
    """`bench memory` on a tiny model must end with status 2; gives its message."""

    def run(*options: str) -> str:
        length = () if "--seq-len" in options else ("--seq-len", "8")
        status = main(["memory", llama, "--target-modules", "q_proj", *length, *options])
        captured = capsys.readouterr()
        assert status == 2
        assert captured.out == ""
        assert captured.err.startswith("bench: error: ")
        assert "Traceback" not in captured.err
        return captured.err

    return run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--gpu", "rtx-4080"), "unknown GPU 'rtx-4080': did you mean rtx-4090"),
        (("--gpu", "abacus"), "unknown GPU 'abacus': known: a10, "),
        (("--gpu-memory", "24"), "expected a size with its unit, such as 24GiB"),
        (("--gpu-memory", "0GiB"), "must be greater than 0"),
        (("--gpu", "t4", "--gpu-memory", "24GiB"), "not both"),
        (("--seq-len", "65"), "--seq-len 65: "),
        (("--seq-len", "65"), "has positions for 64 tokens"),
        (("--seq-len", "0"), "seq_len: expected a whole number >= 1, found 0"),
        (("--batch-size", "-1"), "batch_size: expected a whole number >= 1, found -1"),
        (("--precision", "nf3"), "unknown precision 'nf3': did you mean nf4"),
        (("--optimizer", "adamv"), "unknown optimizer 'adamv': did you mean adamw"),
        (("--compute-dtype", "fp16"), "--compute-dtype is of 4-bit weights, and the precision"),
        (("--reentrant",), "add --gradient-checkpointing"),
        (("--packed", "--padded"), "give --padded or --packed"),
        (
            ("--batch-size", "262145"),
            "batch size times length, in tokens, is 2,097,160: 2,097,152 is most",
        ),
        (("--parallel", "fsdp", "--gpus", "4097"), "gpus is 4,097: 4,096 is most"),
        (("--parallel", "fsdp", "--gpus", "1" + 21 * "0"), "step option gpus is 1,000,000,000"),
        (("--no-loss-scaling",), "nothing here has a loss scaler to leave out"),
        (("--no-fused-head",), "an option of the sft loop, and the loop is plain"),
        (("--max-grad-norm", "0"), "max_grad_norm: expected > 0 and finite, found 0"),
        (("--gradient-accumulation", "0"), "accumulation: expected a whole number >= 1"),
        (("--attention", "flash", "--precision", "fp32"), "float16 and bfloat16 only"),
        (("--attention", "flash", "--gpu", "t4"), "compute capability 8.0 or later, and this one"),
        (("--attention", "flash", "--gpu", "v100-32gb"), "has 7.0"),
        (
            ("--attention", "cudnn", "--gpu", "a100-80gb"),
            "known for GPUs of compute capability 9.0",
        ),
        (("--attention", "cudnn"), "and this one has 8.0"),
        (("--solve", "batch-size"), "--solve needs --gpu or --gpu-memory"),
        (("--solve", "rank", "--rank", "8", "--gpu", "t4"), "--solve rank looks for the largest"),
        (("--solve", "rank", "--gpu-memory", "1KiB"), "not even a rank of 1 fits"),
        (("--store",), "--store keeps predictions of registered scenarios"),
        (("--store", "--gpu", "t4"), "give it without --gpu, --gpu-memory"),
        (("--solve", "rank", "--gpu", "t4", "--format", "csv"), "csv does not go with --solve"),
        (("--measure", "--format", "csv"), "csv does not go with --measure"),
    ],
)
def test_wrong_input(refused, options: tuple[str, ...], said: str) -> None:
    assert said in refused(*options)


def test_what_cannot_be_stored_is_told_before_anything_is_predicted(
    llama: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of one's own would stand under its folder's name among the project's; and the folder
    may be read-only."""
    monkeypatch.setattr("bench.predict.result.predict", lambda *_, **__: pytest.fail("predicted"))
    asked = ["--scenario", "query", "--seq-len", "8", "--store"]
    assert main(["memory", llama, *asked]) == 2
    assert "on registered models" in capsys.readouterr().err
    monkeypatch.setattr("bench.baselines.predicted.os.access", lambda *_: False)
    assert main(["memory", "distilbert-base-uncased", *asked]) == 2
    assert "predicted cannot be written to" in capsys.readouterr().err


VIT = ["memory", "vit-base", "--scenario", "query-value"]


@pytest.mark.parametrize(
    "options",
    [("--seq-len", "100000"), ("--seq-len", "512"), ("--solve", "seq-len", "--gpu", "l4")],
)
def test_images_have_no_length(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    assert main([*VIT, *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "sequence length: vit-base takes images, which have none" in captured.err


def test_images_are_predicted_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(VIT) == 0
    assert "predicted, not measured" in capsys.readouterr().out


def test_a_pattern_that_matches_no_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "opt-350m", "--scenario", "publisht-*"]) == 2
    assert "unknown scenario 'publisht-*'" in capsys.readouterr().err


def _branching(x: Any) -> Any:
    return x if x.sum() > 0 else -x


def _selecting(x: Any) -> Any:
    return x[x > 0].sum() * x


def _unknown(x: Any) -> Any:
    import torch

    if not hasattr(torch.ops, "of_nobody") or not hasattr(torch.ops.of_nobody, "twice"):
        library = torch.library.Library("of_nobody", "DEF")
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
        _unknown.library = library  # its life is the operation's
    return torch.ops.of_nobody.twice(x)


@pytest.mark.parametrize(
    ("activation", "said"),
    [
        (_branching, "made by aten.gt.Scalar: control flow that depends on data"),
        (_selecting, "its result depends on data, or has no shape without it"),
        (_unknown, "of_nobody.twice.default: what this operation allocates is not known"),
    ],
)
def test_an_operation_that_cannot_be_accounted_for(
    refused, monkeypatch: pytest.MonkeyPatch, activation: Callable[[Any], Any], said: str
) -> None:
    import torch

    monkeypatch.setattr(torch.nn.functional, "silu", lambda x, inplace=False: activation(x))
    message = refused()
    assert said in message
    assert "own-r8-bf16-b1-s8" in message  # which case it was


def test_a_prediction_after_an_error_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a failed trace had put in place of the libraries' functions is gone again."""
    import torch

    from bench.predict import predict

    case = tiny_case("opt", "nf4")
    before = predict(case)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "relu", lambda x, inplace=False: _branching(x))
        with pytest.raises(BenchError, match="control flow that depends on data"):
            predict(case)
    assert torch.autocast("cpu") is not None
    assert predict(case) == before


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("opt-125m", ["--liger"]),
        (None, ["--liger", "--parallel", "fsdp", "--gpus", "2"]),
        (None, ["--precision", "int8", "--parallel", "fsdp", "--gpus", "2"]),
    ],
)
def test_what_a_name_decides_is_refused_before_torch_is_loaded(
    llama: str, model: str | None, words: list[str]
) -> None:
    code = "import sys; from bench.cli import main; status = main(sys.argv[1:]); "
    code += "sys.exit(99 if 'torch' in sys.modules else status)"
    command = ["memory", model or llama, "--target-modules", "q_proj", *words]
    assert subprocess.run([sys.executable, "-c", code, *command], check=False).returncode == 2


@pytest.mark.parametrize("packed", [(), pytest.param(("--packed",), marks=pytest.mark.evidence)])
def test_a_search_ends_where_a_batch_has_the_most_tokens(
    llama: str, packed: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*packed, "--seq-len", "64", "--solve", "batch-size", "--gpu-memory", "1000000GiB"]
    assert main(["memory", llama, "--target-modules", "q_proj", *asked, "--json"]) == 0
    solved = json.loads(capsys.readouterr().out)["solved"]
    assert solved == {"what": "batch-size", "value": (1 << 21) // 64, "bounded": True}
