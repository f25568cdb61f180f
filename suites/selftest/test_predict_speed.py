"""A prediction is quick and small, also of a model that would fill a GPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import json, resource, sys, time
import bitsandbytes, peft, torch, transformers
from dataclasses import replace
from bench.cases import StepOptions
from bench.predict import predict
from bench.subjects import Request, select

torch.set_num_threads(1)
model, scenario, precision = sys.argv[1:]
request = Request(models=(model,), scenarios=(scenario,), full_geometry=True)
(subject,) = select(request).structural.values()
case = replace(subject, precision=precision).case(StepOptions(batch_size=1, seq_len=2048))
start = time.process_time()
predict(case)
seconds = time.process_time() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "bytes": peak}))
"""


@pytest.mark.parametrize("precision", ["fp16", "int8", "nf4"])
@pytest.mark.parametrize(
    ("model", "scenario", "seconds"),
    [("llama-3-8b", "everything", 6), ("phi-3-medium", "published-3", 10)],
)
def test_seconds_and_bytes(model: str, scenario: str, seconds: float, precision: str) -> None:
    """Processor time of one core after imports; the process's peak resident size in all."""
    arguments = [sys.executable, "-c", PROGRAM, model, scenario, precision]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["seconds"] < seconds
    assert found["bytes"] < 1.5 * 1024**3
