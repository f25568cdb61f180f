"""What needs no library is told, or answered, before one is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli import main


def test_a_folder_that_is_gone_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["list", "models"]) == 2
    assert "the current folder is no longer there" in capsys.readouterr().err


# Wrong for a registered model, whose class is declared: nothing has to be imported to say so.
TOLD_AT_ONCE = """
memory opt-350m --target-modules q_proj --seq-len 99999
memory opt-350m --target-modules q_proj --seq-len 99999 --solve seq-len --gpu T4
memory opt-350m --target-modules q_proj --rank 0
memory opt-350m --target-modules q_proj --optimizer adamm
memory opt-350m --target-modules q_proj --attention flash --gpu T4
choose opt-350m --gpu T4 --seq-len 99999
choose opt-350m --gpu T4 --seq-len 0
choose opt-350m --gpu T4 --show 99
choose opt-350m --gpu T4 --show 0
choose opt-350m --gpu T4 --precision fp17
targets opt-350m no-such-model --target-modules q_proj
targets opt-350m --target-modules q_proj --precision fp17
methods opt-350m --budget 1000 --task-type FOO
memory opt-350m --target-modules q_proj --images 2
memory opt-350m --target-modules q_proj --images 99999999999
memory opt-350m --target-modules q_proj --batch-size 99999999999
memory opt-350m --target-modules q_proj --gradient-accumulation 99999999999
memory opt-350m --target-modules q_proj --max-grad-norm inf
memory opt-350m --target-modules q_proj --auto-class AutoModelForCausalML
targets opt-350m --target-modules q_proj --auto-class AutoModelForCausalML
targets opt-350m --target-modules q_proj --optional q_porj
targets opt-350m q_proj,v_proj
choose opt-350m --gpu T4 --rank 4 --budget 1000000
choose opt-350m --gpu T4 --rank 99999999999
choose opt-350m --gpu T4 --budget 99999999999999
choose opt-350m --gpu T4 --probe --weights no-such-folder
choose opt-350m --gpu T4 --probe --weights . --data no-such-file
check pyproject.toml --gpu T4 --seq-len 99999999999
learn --save a/b
learn --read --save NAME
learn --allow regressed
learn --compare --threshold step_seconds=-1
learn --device cuda0
learn no-such-study
ab --contender-rank 4 --rounds 99999999999
ab --contender-rank 4 --launches 8 99999999999
explain opt-350m --trainable 0
explain opt-350m --trainable 100 --total 50
"""
WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers", "peft"):
            sys.exit(f"{name} was imported for {asked}")

sys.meta_path.insert(0, Refuse())
from bench.cli import main

for asked in sys.stdin.read().strip().splitlines():
    if main(asked.split()) != 2:
        sys.exit(f"not refused: {asked}")
"""


def test_options_are_checked_before_anything_is_imported_or_built() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], input=TOLD_AT_ONCE,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("bench: error: ") == len(TOLD_AT_ONCE.split("\n")) - 2


def test_help_and_version_answer_without_torch(capsys) -> None:
    code = (
        "import sys; from bench.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'peft', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_conftest_with_an_option_of_the_plugins_is_told(pytester: pytest.Pytester) -> None:
    """In a line with the way out, in the place of pytest's traceback."""
    pytester.makeconftest("def pytest_addoption(parser):\n    parser.addoption('--lora-model')\n")
    pytester.makepyfile("def test_mine(pytestconfig):\n    pytestconfig.getoption('lora_model')\n")
    refused = pytester.runpytest_subprocess()
    assert refused.ret == 2
    (line,) = refused.stderr.str().splitlines()
    assert line.startswith("error: a conftest.py here defines --lora-model, which lora-target-ben")
    assert pytester.runpytest_subprocess(*line.split(": ")[-1].split()).ret == 0
