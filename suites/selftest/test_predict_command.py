"""`bench memory` as it is used: text, tables in every format, JSON, and the exit status."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from model_folders import LLAMA, write_model
from warm import Warm

from bench.cli import main
from bench.predict.result import LIMITS

FALCON = {"model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50,
          "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Status and output of `bench memory` on a tiny model."""

    def run(*options: str, config: Mapping[str, object] = LLAMA) -> tuple[int, str]:
        write_model(tmp_path, config)
        status = main(["memory", str(tmp_path), "--seq-len", "8", *options])
        return status, capsys.readouterr().out

    return run


def test_one_case_is_told_in_full(said) -> None:
    status, text = said("--target-modules", "q_proj", "--gpu", "l4")
    assert status == 0
    for part in ("predicted, not measured", "peak reserved", "the peak lies in backward",
                 "fits L4: yes", "modelled step time on L4: at least", *LIMITS):  # fmt: skip
        assert part in text


def test_a_step_that_does_not_fit_is_status_1(said) -> None:
    status, text = said("--target-modules", "q_proj", "--gpu-memory", "100MiB")
    assert status == 1
    assert "fits 100 MiB: no" in text


def test_json_has_an_object_a_line(said) -> None:
    status, text = said("--target-modules", "q_proj", "--precision", "bf16", "--precision", "nf4",
                        "--json")  # fmt: skip
    assert status == 0
    found = [json.loads(line) for line in text.splitlines()]
    assert [one["precision"] for one in found] == ["bf16", "nf4"]
    for one in found:
        assert one["kind"] == "predicted"
        assert sum(one["breakdown"].values()) == one["peak_allocated_bytes"]
        assert one["peak_reserved_bytes"] >= one["peak_allocated_bytes"]


def test_a_case_that_cannot_be_predicted_keeps_nothing_back(tmp_path: Path, capsys) -> None:
    """What came before it is printed, what would have come after it is named."""
    mamba = {"model_type": "mamba", "architectures": ["MambaForCausalLM"], "hidden_size": 32,
             "num_hidden_layers": 2, "state_size": 4, "vocab_size": 64}  # fmt: skip
    write_model(tmp_path, mamba)
    asked = ["memory", str(tmp_path), "--target-modules", "in_proj", "--seq-len", "8"]
    asked += [word for name in ("bf16", "int8", "nf4") for word in ("--precision", name)]
    assert main([*asked, "--format", "csv"]) == 2
    said = capsys.readouterr()
    assert "-own-r8-bf16-b1-s8," in said.out
    assert "int8-b1-s8: the step cannot be traced" in said.err
    assert said.err.rstrip().endswith(
        "; not looked at after it: " + f"{tmp_path.name}-own-r8-nf4-b1-s8"
    )


def test_a_step_is_measured_beside_its_prediction(said, tmp_path, warm) -> None:
    asked = ("--target-modules", "q_proj", "--precision", "fp32", "--precision", "bf16")
    picture = tmp_path / "beside.svg"
    status, text = said(*asked, "--measure", "--json", "--plot", str(picture))
    assert status == 0
    for one in map(json.loads, text.splitlines()):
        measured = one["measured"]
        assert one["device"] == measured["device"] == "cpu"
        assert one["peak_allocated_bytes"] == measured["peak_allocated_bytes"]
        assert one["peak_by_phase"] == measured["peak_by_phase"]
        for phase, parts in measured["breakdown_by_phase"].items():
            said_parts = one["breakdown_by_phase"][phase]
            assert sum(parts.values()) == measured["peak_by_phase"][phase]
            for part in ("weights", "gradients", "optimizer_state"):
                assert said_parts[part] == parts[part], (phase, part)
        assert not measured["breakdown_by_phase"]["forward"]["gradients"]
        assert measured["breakdown_by_phase"]["optimizer"]["gradients"]
    drawn = picture.read_text()
    for words in ("predicted beside measured", "own r8 bf16", "optimizer"):
        assert words in drawn
    _, table = said("--target-modules", "q_proj", "--measure")
    assert "in backward" in table
    assert "not measured" not in table


def test_what_cannot_be_measured_here_is_said(said, monkeypatch, warm: Warm) -> None:
    """A step larger than the machine is not tried; a GPU that is not here cannot be measured on."""
    from bench.training import machine

    small = replace(machine.machine(), memory_bytes=1000, memory_limit_bytes=None)
    monkeypatch.setattr(machine, "machine", lambda: small)
    status, text = said("--target-modules", "q_proj", "--measure")
    assert status == 1
    assert "not measured: this machine has 1,000 B" in text
    assert said("--target-modules", "q_proj", "--measure", "--gpu", "l4")[0] == 2


@pytest.mark.parametrize(
    "more",
    [(), ("--json",), ("--gpu", "l4"), ("--precision", "bf16", "--precision", "fp32"),
     ("--format", "latex"),
     pytest.param(("--gpu", "l4", "--solve", "batch-size"), marks=pytest.mark.evidence)],
)  # fmt: skip
def test_what_reaches_nothing_is_said_beside_the_figures(said, more: tuple[str, ...]) -> None:
    own = ("--target-modules", "q_proj,nothere", "--modules-to-save", "nohead")
    status, text = said(*own, *more)
    assert status == 0
    begins = '"unreached": ["' if "--json" in more else "not in these figures"
    assert begins in text
    assert "nothere" in text
    assert "nohead" in text
    whole = said("--target-modules", "q_proj", *more)[1]
    assert begins not in whole


@pytest.mark.parametrize(
    ("own", "why"),
    [
        (("--target-modules", "nothere"), "nothere reaches nothing"),
        (("--target-modules", "query_proj"), "query_proj reaches nothing; write instead: q_proj"),
        (("--target-modules", "q_proj", "--modules-to-save", "q_proj"), "q_proj"),
    ],
)
def test_what_peft_refuses_is_told_as_that_and_not_traced(
    tmp_path, capsys, own: tuple[str, ...], why: str
) -> None:
    write_model(tmp_path)
    for more in ((), ("--measure",)):
        assert main(["memory", str(tmp_path), "--seq-len", "8", *own, *more]) == 2
        said = capsys.readouterr().err
        assert "-own: PEFT refuses: " in said
        assert why in said
        assert "cannot be traced" not in said


def test_what_reaches_nothing_is_said_beside_a_table_of_rows_alone(tmp_path, capsys) -> None:
    write_model(tmp_path)
    own = ["--target-modules", "q_proj,nothere", "--format", "csv", "--seq-len", "8"]
    assert main(["memory", str(tmp_path), *own]) == 0
    found = capsys.readouterr()
    assert "nothere" not in found.out
    assert "not in these figures, and reaching nothing: own: nothere" in found.err


def test_a_table_of_scenarios_and_precisions(said) -> None:
    asked = ("--scenario", "query*", "--precision", "bf16", "--precision", "int8")
    status, markdown = said(*asked)
    assert status == 0
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    header = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert header[:3] == ["scenario", "r", "precision"]
    assert header[4:6] == ["predicted peak allocated", "predicted peak reserved"]
    assert header[6:] == ["fits 24 GB", "fits 48 GB", "fits 80 GB"]
    assert len(lines) == 2 + 3 * 2  # query, query-value, query-key-value
    assert "Predicted, not measured. One GPU, eager mode" in markdown
    _, table = said(*asked, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(table)))
    assert len(rows) == 6
    assert {row["kind"] for row in rows} == {"predicted"}
    assert {row["fits 24 GB"] for row in rows} == {"yes"}
    _, one = said("--scenario", "query-value", "--precision", "bf16", "--json")
    (same,) = (r for r in rows if "-query-value-" in r["case"] and "-bf16-" in r["case"])
    assert int(same["peak_allocated_bytes"]) == json.loads(one)["peak_allocated_bytes"]
    assert r"\toprule" in said(*asked, "--format", "latex")[1]


@pytest.mark.evidence
def test_solved_for_the_batch(said) -> None:
    options = ("--target-modules", "q_proj", "--gpu-memory", "538MiB", "--solve", "batch-size")
    status, text = said(*options, "--json")
    assert status == 0
    found = json.loads(text)
    assert found["solved"]["what"] == "batch-size"
    assert found["solved"]["value"] > 1
    assert found["fit"]["fits"]
    largest = str(found["solved"]["value"])
    assert said(*options[:4], "--batch-size", largest)[0] == 0
    if not found["solved"]["bounded"]:
        assert said(*options[:4], "--batch-size", str(int(largest) + 1))[0] == 1


def test_a_model_that_stays_unquantized_is_named(said) -> None:
    """transformers replaces layers of class Linear alone; Falcon's are of a class of their own."""
    _, text = said("--target-modules", "query_key_value", "--precision", "nf4", config=FALCON)
    assert "transformers quantizes no layer of this model" in text
    blocks = 2 * (32 * (32 + 2 * 8) + 32 * 32 + 2 * 32 * 128)  # multi-query; fourfold MLP
    assert f"{2 * blocks / 1024:.2f} KiB of FalconLinear (linear layers of a class" in text
    _, text = said("--target-modules", "query_key_value", "--precision", "bf16", config=FALCON)
    assert "quantizes no layer" not in text


def test_experts_that_stay_unquantized_are_named(said) -> None:
    """transformers 5 fuses experts into 3-D parameters, which bitsandbytes does not quantize."""
    mixture = {
        **LLAMA, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 4, "num_experts_per_tok": 2,
    }  # fmt: skip
    asked = ("--target-modules", "q_proj")
    experts = 2 * 4 * (2 * 48 + 48) * 32  # layers, experts, gate and up, down, width
    attention = 2 * (2 * 32 * 32 + 2 * 32 * 16)  # query and output, key and value
    _, text = said(*asked, "--precision", "nf4", config=mixture)
    assert "note: " in text
    assert "72.00 KiB of expert weights (fused into parameters" in text
    assert 2 * experts == 72 * 1024
    for precision in ("nf4", "int8"):
        _, text = said(*asked, "--precision", precision, "--json", config=mixture)
        found = json.loads(text)
        assert found["unquantized_bytes"] == {"experts": 2 * experts}
        assert found["unquantized_share"] == pytest.approx(experts / (experts + attention))
        assert "expert weights" in found["notes"][0]
    _, text = said(*asked, "--precision", "bf16", "--json", config=mixture)
    assert json.loads(text)["notes"] == []
    assert json.loads(text)["unquantized_bytes"] == {}
    _, table = said(*asked, "--precision", "nf4", "--precision", "bf16", config=mixture)
    assert table.count("72.00 KiB of expert weights") == 1


@pytest.mark.parametrize(
    ("gpu", "options", "kernel"),
    [
        ("h100", (), "cudnn"),
        ("h200", ("--padded", "--batch-size", "2"), "cudnn"),
        ("h100", ("--precision", "nf4"), "cudnn"),
        ("h100", ("--attention", "flash"), "flash"),
        ("h100", ("--precision", "fp32"), None),  # cuDNN's takes halves only
        ("a100-80gb", (), "flash"),
    ],
)
def test_hopper_takes_cudnns_attention(
    said, gpu: str, options: tuple[str, ...], kernel: str | None
) -> None:
    """sdp_utils.cpp, check_prefer_cudnn_attention; what it allocates was measured on Hopper."""
    _, text = said("--target-modules", "q_proj", "--gpu", gpu, *options, "--json")
    found = json.loads(text)
    taken = [name for name in found["operations_by_name"] if "_attention.d" in name]
    assert taken == ([f"aten._scaled_dot_product_{kernel}_attention.default"] if kernel else [])
    assert any("cuDNN's for halves" in said for said in found["assumptions"]) == (
        gpu in ("h100", "h200") and "--attention" not in options
    )
    assert found["cudnn_first"] is False
    assert found["notes"] == []


def test_cudnns_kernel_on_blackwell_is_a_limit_that_is_said() -> None:
    from measure_support import tiny_case

    from bench.predict import predict
    from bench.predict.gpus import load_gpus
    from bench.reports.predicted import notes

    blackwell = replace(load_gpus()["h200"], name="B200", capability=10.0)
    for precision, noted in (("bf16", True), ("fp32", False)):
        found = predict(tiny_case("opt", precision), gpu=blackwell)
        assert found.cudnn_first == noted
        assert any("prefers cuDNN's attention there" in note for note in notes(found)) == noted


def test_which_capabilities_prefer_cudnn() -> None:
    from bench.predict.attention import prefers_cudnn

    preferring = [c for c in (7.0, 7.5, 8.0, 8.6, 8.9, 9.0, 10.0, 10.3, 12.0) if prefers_cudnn(c)]
    assert preferring == [9.0, 10.0]


@pytest.mark.parametrize(
    ("asked", "said_so"),
    [
        (("--precision", "bf16", "--gpu", "T4"), True),
        (("--precision", "nf4", "--gpu", "T4"), True),  # it computes in bf16
        (("--precision", "fp16", "--gpu", "T4"), False),
        (("--precision", "bf16", "--gpu", "A10"), False),
    ],
)
def test_bf16_without_hardware_for_it_is_said(said, asked: tuple[str, ...], said_so: bool) -> None:
    told = said("--target-modules", "q_proj", *asked)[1]
    assert (
        "T4 has no hardware for bfloat16 (compute capability 7.5; it needs 8)" in told
    ) == said_so


def test_a_little_that_stays_unquantized_is_no_note(said) -> None:
    """A layer that is trained whole stays as it is because that was asked for."""
    _, text = said("--target-modules", "q_proj", "--precision", "nf4", "--json")
    assert json.loads(text)["notes"] == []
    _, text = said("--target-modules", "q_proj", "--modules-to-save", "down_proj",
                   "--precision", "nf4", "--json")  # fmt: skip
    assert json.loads(text)["notes"] == []


def test_limits_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["memory", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for word in ("one GPU", "compilation", "sharding", "CUDA context"):
        assert word in text


def test_paged_state_of_large_adapters_is_outside_the_allocator(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """bitsandbytes pages state of 1e5 elements and more: in 8 bits two bytes an element."""
    asked = ["memory", "opt-125m", "--target-modules", "fc1", "--rank", "256", "--seq-len", "32",
             "--json", "--optimizer"]  # fmt: skip
    held = []
    for optimizer in ("adamw-8bit", "paged-adamw-8bit"):
        assert main([*asked, optimizer]) == 0
        held.append(json.loads(capsys.readouterr().out)["breakdown"]["optimizer_state"])
    elements = 12 * 256 * (768 + 3072)  # A and B of twelve layers, each above 1e5
    assert held[0] - held[1] == pytest.approx(2 * elements, rel=0.02)
