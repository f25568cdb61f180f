"""What cases read from disk where they are measured: the same on every node as here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.files import CODE, WEIGHTS, digest_of
from bench.measure.submitted import NodeLost
from bench.training.cases import Case

if TYPE_CHECKING:
    from bench.measure.cluster import Cluster
    from bench.measure.nodes import Node

Asked = tuple[str, str, tuple[str, ...]]
"""The option that names a folder, the folder, and the patterns of what is read in it."""


def anywhere(case: Case) -> Case:
    """The case, whatever folder the process that measures it runs in."""
    return replace(case, weights=case.weights and str(Path(case.weights).absolute()))


def read_by(cases: Iterable[Case]) -> list[Asked]:
    """The folders that measuring the cases reads: a config travels with its case, those do not."""
    asked: dict[Asked, None] = {}
    for case in map(anywhere, cases):
        if case.weights:
            asked["--weights", case.weights, WEIGHTS] = None
        if case.code:
            asked["--model", case.code, CODE] = None
    return list(asked)


def digests(asked: Sequence[Asked]) -> list[str]:
    """Of each folder, read whole; "" where it is none, or cannot be read."""
    found = []
    for _, folder, patterns in asked:
        digest = ""
        if Path(folder).is_dir():
            with contextlib.suppress(BenchError):
                digest = digest_of(Path(folder), *patterns)
        found.append(digest)
    return found


def require_same(cluster: Cluster, nodes: Sequence[Node], cases: Iterable[Case]) -> None:
    """BenchError where a folder is not on a node, or holds something else there."""
    if not (asked := read_by(cases)):
        return
    tasks = [(node, cluster.submit(digests, asked, nodes=[node], cpus=0)) for node in nodes]
    here = digests(asked)
    wrong = []
    for node, task in tasks:
        try:
            there = task.answer()
        except (BenchError, NodeLost):  # gone meanwhile: what is left measures
            continue
        for (option, folder, patterns), mine, theirs in zip(asked, here, there, strict=True):
            if mine != theirs:
                what = f"other {' and '.join(patterns)} than here" if theirs else "no such folder"
                wrong.append(f"node {node.name}: {option} {folder}: {what} there")
    if wrong:
        raise BenchError(f"--cluster {cluster.address}: {'; '.join(wrong)}")
