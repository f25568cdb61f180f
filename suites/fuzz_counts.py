"""Random configurations over many types against PEFT itself: `python suites/fuzz_counts.py`.

Prints every difference with the configuration that shows it, and the counts of what was compared.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent))

from agreement import Unknown, disagreement
from random_adapters import random_adapter
from small_types import SmallType, small_types

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError


@dataclass
class Outcome:
    """What was compared: how many were injected, refused, of which no closed form is known."""

    counts: Counter[str] = field(default_factory=Counter)
    types: set[str] = field(default_factory=set)
    differences: list[str] = field(default_factory=list)

    def __add__(self, other: Outcome) -> Outcome:
        differences = [*self.differences, *other.differences]
        return Outcome(self.counts + other.counts, self.types | other.types, differences)


def fuzz(seed: int, examples: int, only: str = "", part: tuple[int, int] = (0, 1)) -> Outcome:
    """`examples` configurations drawn with `seed`, spread evenly over the types; of them those
    whose number leaves the rest `part[0]`, divided by `part[1]`."""
    draw, outcome = Random(seed), Outcome()
    types = [t for t in small_types() if only in t.label]
    for number, (small, adapter) in enumerate(_draw(draw, types, examples)):
        if number % part[1] != part[0]:
            continue
        outcome.types.add(small.model_type)
        try:
            kind, difference = disagreement(small.build(), small.table, adapter)
        except Unknown:
            kind, difference = "unknown", ""
        except Exception:  # a traceback is a difference too
            kind, difference = "traceback", traceback.format_exc(limit=-4)
        outcome.counts[kind] += 1
        if difference:
            text = f"#{number} {small.label}: {adapter.to_dict()}\n  {difference}"
            outcome.differences.append(text)
    return outcome


def _draw(
    draw: Random, types: list[SmallType], examples: int
) -> Iterator[tuple[SmallType, AdapterConfig]]:
    made = 0
    while made < examples:
        small = types[made % len(types)]
        try:
            yield small, random_adapter(draw, small.table)
        except BenchError:  # its fields do not go together
            continue
        made += 1


def fuzz_on(address: str, seed: int, examples: int, only: str) -> Outcome:
    """The same, in parts, on the nodes of a Ray cluster: four for each processor that they lend."""
    from bench.measure.cluster import Cluster

    with Cluster(address) as cluster:
        count = min(examples, 4 * max(1, int(sum(node.cpus for node in cluster.nodes))))
        parts = [(seed, examples, only, (number, count)) for number in range(count)]
        found = [cluster.submit(fuzz, *part) for part in parts]
        return sum((each.answer() for each in found), Outcome())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--cluster", metavar="ADDRESS", help="on a Ray cluster: auto, or HOST:PORT")
    parser.add_argument("--type", default="", help="only labels that hold this")
    options = parser.parse_args()
    asked = (options.seed, options.examples, options.type)
    try:
        outcome = fuzz_on(options.cluster, *asked) if options.cluster else fuzz(*asked)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(outcome.differences))
    print(
        f"seed {options.seed}: {sum(outcome.counts.values())} configurations over "
        f"{len(outcome.types)} types, {dict(outcome.counts)}, "
        f"{len(outcome.differences)} differences"
    )
    return bool(outcome.differences)


if __name__ == "__main__":
    sys.exit(main())
