"""The options of `python -m bench`, command by command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from bench import __version__
from bench.cli import commands

FORMATS = ("terminal", "markdown", "csv", "latex", "json")


def make_parser() -> argparse.ArgumentParser:
    """Every command with its options; `run` of the parsed options carries it out."""
    parser = argparse.ArgumentParser(
        prog="bench", description="What LoRA target modules adapt, what they cost, what changed."
    )
    parser.add_argument("--version", action="version", version=f"bench {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str, more: str | None = None
    ) -> _Add:
        sub = subparsers.add_parser(name, help=text, description=text, epilog=more)
        sub.set_defaults(run=run)
        return sub.add_argument

    # fmt: off
    add = command("targets", commands.targets, "what a LoRA configuration reaches on a model")
    add("models", nargs="+", metavar="MODEL",
        help="registered name, folder or config.json, or hub id")
    _add_adapter(add)
    add("--target-parameters", default="", metavar="A,B")
    add("--exclude-modules", default="", metavar="A,B|re:REGEX")
    add("--optional", default="", metavar="A,B", help="entries that may reach nothing")
    add("--strict", action="store_true", help="exit with 1 when an entry has no effect")
    add("--precision", metavar="P",
        help="as loaded in int8, nf4, ...: which heads cannot train, and the three totals")
    add("--method", metavar="M", help="another PEFT method: ia3, vera, prefix_tuning, full, ...")
    add("--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings",
        help="a field of that method's PEFT config, a list as A,B; repeatable")

    add = command("methods", commands.methods,
        "every PEFT method at one budget of trained parameters")
    add("model", metavar="MODEL")
    add("--budget", type=int, required=True, metavar="N", help="trainable parameters")
    add("--target-modules", metavar="A,B|REGEX")
    add("--task-type", metavar="T")
    _add_model(add)

    add = command("explain", commands.explain,
        "which configurations train exactly this many parameters")
    add("model", metavar="MODEL")
    add("--trainable", type=int, required=True, metavar="N", help="the number in the log")
    add("--total", type=int, metavar="N", help="all parameters, where the log has them")
    _add_model(add)

    add = command("memory", commands.memory, "predict a step's GPU memory, without a GPU",
                  "Limits: one GPU and eager mode (no compilation, autocast or sharding); the CUDA "
                  "context is outside, and assumed to take 0.5 GiB where a GPU is asked for; the "
                  "allocator has its default settings and room. docs/prediction.md says more.")
    add("model", metavar="MODEL")
    _add_adapter(add, many=True)
    add("--precision", action="append", default=[], metavar="P", help="repeatable (default bf16)")
    add("--batch-size", type=int, default=1)
    add("--seq-len", type=int, help="tokens in a sequence (default: 512); images have none")
    add("--gradient-checkpointing", action="store_true")
    add("--padded", action="store_true", help="sequences of different length")
    add("--optimizer", default="adamw")
    add("--attention", choices=("flash", "efficient", "math"))
    add("--gpu", metavar="NAME", help="hold the prediction against this GPU")
    add("--gpu-memory", metavar="SIZE", help="... or against this much memory, such as 24GiB")
    add("--solve", choices=("batch-size", "seq-len", "rank"), help="the largest that fits")
    add("--format", choices=("terminal", "markdown", "csv", "latex"),
        help="of the table that several cases give (default markdown)")
    add("--store", action="store_true",
        help="keep the predictions in results/predicted, where the suite compares them")

    add = command("atlas", commands.atlas, "what every model type of transformers is made of")
    add("--types", default="", metavar="A,B", help="only these model types")
    add("--output", type=Path, metavar="DIR", help="where to store (default: fixtures/atlas)")
    add("--jobs", type=int, metavar="N", help="processes (default: one a core)")
    add("--diff", nargs=2, metavar=("OLD", "NEW"), help="tell two stored atlases apart instead")
    add("--reach", action="store_true",
        help="inject the popular targets into every type instead, and store what PEFT reaches")
    add("--roles", action="store_true", help="assign the roles of every stored atlas again instead")
    add("--page", type=Path, metavar="FILE", help="bring the figures of docs/atlas.md up to date")
    add("--json", action="store_true", help="one JSON object a line")

    add = command("report", commands.report, "comparison table of stored runs")
    add("runs", nargs="*", metavar="RUN",
        help="stored run: a file, or its number or name in results/ (default: the latest)")
    add("--format", choices=FORMATS, default="markdown")
    add("--json", action="store_const", const="json", dest="format",
        help="one JSON object a line: --format json")
    add("--baseline", metavar="RUN", help="hold the runs against this one")
    add("--output", type=Path, metavar="FILE", help="write the table there")

    add = command("compare", commands.compare, "verdicts on two stored runs")
    add("baseline", metavar="BASE")
    add("contender", metavar="NEW")
    _add_gate(add)
    add("--format", choices=FORMATS, default="terminal")
    add("--json", action="store_const", const="json", dest="format",
        help="one JSON object a line: --format json")

    add = command("ab", commands.ab,
        "what an upgrade changed, measured in two environments side by side")
    add("--baseline-env", required=True, metavar="ENV", help="a virtual environment or its python")
    add("--contender-env", required=True, metavar="ENV", help="another, to hold against it")
    add("--model", action="append", default=[], metavar="MODEL",
        help="measure this one; repeatable (default: the three published models)")
    add("--scenario", action="append", default=[], metavar="NAME", help="only this; repeatable")
    add("--rank", type=int, metavar="R", help="at this rank instead of the scenario's own")
    add("--precision", action="append", default=[], metavar="P", help="only this; repeatable")
    add("--batch-size", type=int, default=2, help="sequences in a step (default: %(default)s)")
    add("--seq-len", type=int, default=32, help="tokens in a sequence (default: %(default)s)")
    add("--rounds", type=int, default=20, metavar="N",
        help="steps on each side in one launch of a case, an even number (default: %(default)s)")
    add("--launches", type=int, nargs=2, default=(8, 24), metavar=("FEWEST", "MOST"),
        help="how often a case's two processes are started anew: until the interval of the ratio "
             "is narrow (default: 8 24); a verdict on time needs 8")
    add("--clock", choices=("processor", "wall"), default="processor",
        help="of a step on a CPU (default: %(default)s)")
    _add_gate(add)
    add("--save", type=Path, metavar="DIR", help="store both runs there")
    add("--format", choices=("terminal", "markdown", "latex", "json"), default="terminal")
    add("--json", action="store_const", const="json", dest="format",
        help="one JSON object a line: --format json")
    # fmt: on
    return parser


_Add = Callable[..., argparse.Action]


def _add_model(add: _Add) -> None:
    add("--auto-class", metavar="CLASS", help="transformers class to build the model with")
    add("--trust-remote-code", action="store_true", help="run a model repository's own code")
    add("--json", action="store_true", help="one JSON object a line")


def _add_adapter(add: _Add, many: bool = False) -> None:
    # fmt: off
    add("--adapter", type=Path, help="a PEFT adapter_config.json, or its folder")
    if many:
        add("--scenario", action="append", metavar="NAME",
            help="a registered scenario, or a pattern such as 'published-*'; repeatable")
    else:
        add("--scenario", help="a registered scenario")
    add("--target-modules", metavar="A,B|REGEX",
        help="entries separated by commas, 'all-linear', or re:REGEX")
    add("--modules-to-save", default="", metavar="A,B")
    add("--rank", type=int, metavar="R")
    add("--task-type", metavar="T", help="SEQ_CLS, CAUSAL_LM, ...")
    # fmt: on
    _add_model(add)


def _add_gate(add: _Add) -> None:
    add("--threshold", action="append", default=[], metavar="METRIC=X%")
    add("--allow", action="append", default=[], metavar="VERDICT[:ID]")
    add("--verdict-file", type=Path, metavar="FILE")
