"""A model whose code lies beside its config: run with --trust-remote-code, and named if not."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from matrices import matrix
from model_folders import write_model
from warm import Warm

CONFIGURATION = """
import os
print("what its own code prints")
from transformers import PretrainedConfig

called = int(os.environ.get("BENCH_CALLED", os.getppid()))
open(os.environ["BENCH_RAN"], "a").write(f"{os.getpid()} {called}\\n")
if "BENCH_ENDS" in os.environ:
    os._exit(0)
if "BENCH_SIGNAL" in os.environ:  # to the process that was called; it comes back to this one
    import signal
    os.kill(called, int(os.environ["BENCH_SIGNAL"]))
    signal.sigtimedwait([], 20)

class TinyConfig(PretrainedConfig):
    model_type = "tiny-of-its-own"

    def __init__(self, vocab_size=20, hidden_size=16, num_hidden_layers=2, **more):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.num_hidden_layers = num_hidden_layers
        super().__init__(**more)
"""
MODELING = """
import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_tiny import TinyConfig

class TinyForCausalLM(PreTrainedModel):
    config_class = TinyConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        width = config.hidden_size
        self.embed = torch.nn.Embedding(config.vocab_size, width)
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict({"odd_proj": torch.nn.Linear(width, width)})
            for _ in range(config.num_hidden_layers)
        )
        self.lm_head = torch.nn.Linear(width, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def prepare_inputs_for_generation(self, input_ids, **more):
        return {"input_ids": input_ids}

    def forward(self, input_ids=None, attention_mask=None, labels=None, **more):
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer["odd_proj"](hidden))
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            )
        return CausalLMOutput(loss=loss, logits=logits)
"""
CONFIG = {
    "model_type": "tiny-of-its-own", "architectures": ["TinyForCausalLM"], "vocab_size": 20,
    "hidden_size": 16, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2,
    "auto_map": {"AutoConfig": "configuration_tiny.TinyConfig",
                 "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM"},
}  # fmt: skip
PROJECT = Path(__file__).resolve().parents[2]
INTERPRETER = sys.executable
_CALLED: list[int] = []
# What is called when it is forked: `python -m` that tells its workers its number, since they are
# children of the warm process.
SAID = """
import os, runpy, sys
os.environ["BENCH_CALLED"] = str(os.getpid())
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
TRAINED = 4 * (16 + 16) * 2  # r (in + out) in each of two layers
MEASURE = """
import sys
from pathlib import Path
from bench.adapters.config import AdapterConfig
from bench.measure import Session
from bench.models.architectures import find_model
from bench.scenarios.subjects import Subject
from bench.training.options import StepOptions

model = find_model("own", trust_remote_code=True)
adapter = AdapterConfig(("odd_proj",), r=4, task_type="CAUSAL_LM")
case = Subject(model, "own", adapter, precision="fp32").case(StepOptions(seq_len=8))
with Session(device="cpu") as session, session.start(case) as running:
    print(running.prepare().trainable_parameters)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "configuration_tiny.py").write_text(CONFIGURATION)
    (folder / "modeling_tiny.py").write_text(MODELING)
    return tmp_path


def _run(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Python of this environment, or what stands in its place: transformers' copies of the code
    then lie in the warm process's home."""
    started = sys.executable == INTERPRETER
    environment = {
        **os.environ,
        "BENCH_RAN": str(folder / "ran"),
        **({"HF_MODULES_CACHE": str(folder / "modules")} if started else {}),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(PROJECT), *sys.path]),
        **more,
    }
    if not started and arguments[0] == "-m":
        arguments = ("-c", SAID, *arguments[1:])
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as called:  # fmt: skip
        stdout, stderr = called.communicate()
    _CALLED.append(called.pid)
    return subprocess.CompletedProcess(arguments, called.returncode, stdout, stderr)


def _ran_apart(folder: Path) -> bool:
    """Whether the code ran, and only in workers of the process that was called last."""
    lines = (folder / "ran").read_text().split()
    ran, callers = set(lines[::2]), set(lines[1::2])
    forked = sys.executable != INTERPRETER  # for it: the one called has the client's number
    return not callers & ran and (len(callers) == 1 if forked else callers == {str(_CALLED[-1])})


ASKED = ("own", "--target-modules", "odd_proj", "--rank", "4", "--json")


@pytest.mark.parametrize("command", ["targets", "memory"])
def test_own_code_is_run_where_it_is_trusted_and_nowhere_else(
    own: Path, command: str, warm_process: Warm
) -> None:
    task = ("--task-type", "CAUSAL_LM")
    with warm_process.in_place():
        refused = _run(own, "-m", "bench", command, *ASKED, *task)
    assert refused.returncode == 2
    assert "only run with --trust-remote-code" in refused.stderr
    assert not (own / "ran").exists()
    started = command == "targets"  # one as a user starts it
    with contextlib.nullcontext() if started else warm_process.in_place():
        done = _run(own, "-m", "bench", command, *ASKED, *task, "--trust-remote-code")
        assert done.returncode == 0, done.stderr
        assert _ran_apart(own)
    assert json.loads(done.stdout)["trainable_parameters"] == TRAINED  # the answer alone
    assert "what its own code prints" in done.stderr


def test_code_that_ends_its_process_is_no_answer(own: Path, warm: Warm) -> None:
    """os._exit(0) would be the status of a check that holds."""
    done = _run(own, "-m", "bench", "targets", *ASKED, "--trust-remote-code", "--strict",
                BENCH_ENDS="1")  # fmt: skip
    assert done.returncode == 2
    assert "the model's own code (--trust-remote-code) ended or crashed it" in done.stderr


@pytest.mark.parametrize("trusted", [True, False])
def test_the_suites_run_own_code_in_a_worker_alone(
    own: Path, trusted: bool, warm_process: Warm
) -> None:
    (own / "adapter.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "target_modules": ["odd_proj"]})
    )
    asked = ("-m", "pytest", str(PROJECT / "suites" / "test_counts.py"), "--model", "own", "-q",
             "--adapter", "adapter.json", "-k", "user", "-p", "no:cacheprovider")  # fmt: skip
    with warm_process.in_place():
        done = _run(own, *asked, *["--trust-remote-code"] * trusted)
        apart = trusted and _ran_apart(own)
    if not trusted:
        assert done.returncode != 0
        assert "only run with --trust-remote-code" in done.stdout + done.stderr
        assert not (own / "ran").exists()
        return
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "1 passed" in done.stdout
    assert apart
    with warm_process.in_place():
        ended = _run(own, *asked, "--trust-remote-code", BENCH_ENDS="1")
    assert ended.returncode == 2
    assert "ended or crashed it" in ended.stderr


@pytest.mark.parametrize(
    ("command", "name"), matrix(product(("targets", "pytest"), ("SIGINT", "SIGTERM", "SIGHUP")))
)
def test_a_signal_ends_the_worker_too(
    own: Path, command: str, name: str, warm_process: Warm
) -> None:
    asked = ("bench", "targets", *ASKED)
    if command == "pytest":
        suite = str(PROJECT / "suites" / "test_counts.py")
        asked = ("pytest", suite, "--model", "own", "--target-modules", "odd_proj")
    number = int(signal.Signals[name])
    started = command == "targets" and name == "SIGTERM"  # one as a user starts it
    with contextlib.nullcontext() if started else warm_process.in_place():
        done = _run(own, "-m", *asked, "--trust-remote-code", BENCH_SIGNAL=str(number))
    assert done.returncode in (130, 128 + number, 2), done.stderr  # and not -number
    assert "Traceback" not in done.stderr
    assert "ended or crashed it" not in done.stderr
    (worker,) = {int(pid) for pid in (own / "ran").read_text().split()[::2]}
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_own_code_trains_in_a_worker(own: Path, warm: Warm) -> None:
    done = _run(own, "-c", MEASURE)
    assert done.stdout.strip() == str(TRAINED), done.stderr[-2000:]


def test_another_class_than_the_config_names_is_said(tmp_path: Path, warm: Warm) -> None:
    write_model(tmp_path / "foo", architectures=["FooForBar"])
    write_model(tmp_path / "own", auto_map={"AutoModelForCausalLM": "modeling_foo.Foo"})
    done = _run(tmp_path, "-m", "bench", "targets", "foo", "own", "--target-modules", "q_proj")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "architectures names FooForBar, which transformers" in said
    assert "does not have: answered for AutoModelForCausalLM" in said
    assert "code of its own (auto_map), which was not run" in said
