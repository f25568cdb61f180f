"""Measures what commands take, keeps it in results/, and tells it on docs/ci.md:
`python docs/_durations.py`."""

from __future__ import annotations

import json
import resource
import shlex
import subprocess
import sys
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.training.machine import machine, versions  # noqa: E402

PAGE = ROOT / "docs" / "ci.md"
STORED = ROOT / "results" / "durations.json"
BEGIN, END = "<!-- durations, written by docs/_durations.py -->", "<!-- end of durations -->"
YAML = "fixtures/readers/axolotl/llama-3-8b-qlora.yaml"
COMMANDS = {
    'python -c "import torch, transformers, peft"': "to compare",
    "bench check {yaml} --no-gradients": "an axolotl YAML of 8 B",
    "bench check {yaml}": "the same, with which adapters get a gradient",
    "bench check {yaml} --gpu 'RTX 4090'": "the same, with the memory of its step",
    "bench memory llama-3-8b --scenario everything --precision nf4": "a step of 8 B",
    "bench memory llama-3-8b --scenario everything --precision nf4 --loop sft": "TRL's",
    "bench memory llama-3-8b --scenario everything --gpu 'RTX 4090'":
        "does not fit: with each way to make it fit",
    "bench choose llama-3-8b --gpu-memory 24GiB": "30 rows; two cores share it",
    "pytest suites/test_parameters.py --model llama-3.2-1b": "counts and parameters of one model",
}  # fmt: skip


def taken(command: str) -> float:
    """Seconds of the processor, the command's children's too."""
    words = shlex.split(command.format(yaml=YAML))
    words = words[1:] if words[0] == "python" else ["-m", *words]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    status = subprocess.run([sys.executable, *words], cwd=ROOT, check=False, **quiet).returncode
    if status > 1:  # 1: a step does not fit, an entry is dead
        raise SystemExit(f"{command} ended with {status}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def written(page: str) -> str:
    """The page with what is stored."""
    kept = json.loads(STORED.read_text(encoding="utf-8"))
    rows = [
        (f"`{command.format(yaml=Path(YAML).name)}`", COMMANDS[command], f"{seconds:.1f}")
        for command, seconds in kept["seconds"].items()
    ]
    table = tabulate(
        rows,
        ("command", "", "s"),
        "pipe",
        disable_numparse=True,
        colalign=("left", "left", "right"),
    )
    here, made = kept["machine"], ", ".join(f"{k} {v}" for k, v in kept["versions"].items())
    said = f"On {here['processor']}, {here['cpu_count']} cores; {made}."
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{said}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Measure each command twice, of which the less counts, after one that writes Python's
    bytecode; store that, and write the page."""
    taken(next(iter(COMMANDS)))
    seconds = {each: round(min(taken(each) for _ in range(2)), 2) for each in COMMANDS}
    told = {"machine": machine().to_dict(), "versions": versions(), "seconds": seconds}
    STORED.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
