"""The model of CUDA's caching allocator, by hand from its published rules.

Sizes are rounded to 512 bytes; up to 1 MiB they come from segments of 2 MiB, below 10 MiB from
segments of 20 MiB, from there on from segments of their own in multiples of 2 MiB. A block is split
where 512 bytes (small) or more than 1 MiB (large) remain.
"""

from __future__ import annotations

import gzip
import json
import random

import pytest

from bench.files import FIXTURES
from bench.predict.allocator import CachingAllocator, ExactAllocator

MEASURED = FIXTURES / "measured"
MIB = 1024**2


@pytest.mark.parametrize(
    ("size", "block", "segment"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (9 * MIB, 9 * MIB, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),  # 2 MiB less 512 B remain: split
        (11 * MIB, 12 * MIB, 12 * MIB),  # exactly 1 MiB remains: not split
        (33 * MIB, 34 * MIB, 34 * MIB),
    ],
)
def test_one_allocation(size: int, block: int, segment: int) -> None:
    allocator = CachingAllocator()
    assert allocator.allocate("a", size) == block
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (block, segment)
    allocator.release("a")
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (0, segment)


def test_nothing_takes_nothing() -> None:
    allocator = CachingAllocator()
    assert allocator.allocate("a", 0) == 0
    allocator.release("a")
    assert allocator.reserved_bytes == 0


def test_small_and_large_blocks_never_share_a_segment() -> None:
    allocator = CachingAllocator()
    allocator.allocate("large", 2 * MIB)  # 18 of its 20 MiB are free
    allocator.allocate("small", MIB)
    assert allocator.reserved_bytes == 22 * MIB


def test_the_smallest_block_that_fits_is_taken_and_split() -> None:
    allocator = CachingAllocator()
    for key, size in (("a", 30 * MIB), ("b", 16 * MIB)):
        allocator.allocate(key, size)
    allocator.release("a")
    allocator.release("b")
    allocator.allocate("c", 12 * MIB)  # from b's 16, of which 4 remain
    allocator.allocate("d", 30 * MIB)  # a is whole
    allocator.allocate("e", 4 * MIB)
    assert allocator.reserved_bytes == 46 * MIB
    allocator.allocate("f", 2 * MIB)  # nothing is left
    assert allocator.reserved_bytes == 66 * MIB


def test_of_equal_blocks_the_one_in_the_newest_segment_is_taken() -> None:
    """Addresses go down from segment to segment: what is left over then lies side by side with
    what the newest segment has free, or does not."""
    allocator = CachingAllocator()
    for key in ("old", "new"):
        allocator.allocate(key, 20 * MIB)
    newest = allocator.address("new")
    for key in ("old", "new"):
        allocator.release(key)
    allocator.allocate("a", 12 * MIB)
    assert allocator.address("a") == newest
    allocator.allocate("b", 8 * MIB)  # what is left of it, and not a part of the old one
    allocator.allocate("c", 20 * MIB)
    assert allocator.reserved_bytes == 40 * MIB


def test_neighbours_are_merged_when_they_are_free() -> None:
    allocator = CachingAllocator()
    for key in "abcd":
        allocator.allocate(key, 5 * MIB)  # one segment of 20 MiB
    assert allocator.reserved_bytes == 20 * MIB
    for key in "bc":
        allocator.release(key)
    allocator.allocate("e", 10 * MIB)
    assert allocator.reserved_bytes == 20 * MIB
    allocator.release("a")
    allocator.release("d")
    allocator.allocate("f", 10 * MIB)  # 5 + 5 MiB are free, but not side by side
    assert allocator.reserved_bytes == 30 * MIB


def test_what_is_not_split_off_counts_as_allocated() -> None:
    allocator = CachingAllocator()
    allocator.allocate("a", 12 * MIB)
    allocator.release("a")
    assert allocator.allocate("b", 11 * MIB) == 12 * MIB
    assert allocator.allocated_bytes == 12 * MIB


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_the_books_balance(seed: int) -> None:
    """Random life: what is allocated is the sum of the blocks, and all that was reserved can be
    had again in one piece a segment."""
    draw = random.Random(seed)
    allocator, exact = CachingAllocator(), ExactAllocator()
    blocks: dict[int, int] = {}
    wanted: dict[int, int] = {}
    for key in range(600):
        if blocks and draw.random() < 0.45:
            gone = draw.choice(sorted(blocks))
            del blocks[gone], wanted[gone]
            allocator.release(gone)
            exact.release(gone)
        else:
            wanted[key] = int(2 ** draw.uniform(0, 25))
            blocks[key] = allocator.allocate(key, wanted[key])
            exact.allocate(key, wanted[key])
        assert allocator.allocated_bytes == sum(blocks.values()) <= allocator.reserved_bytes
        assert exact.allocated_bytes == sum(wanted.values())
    before = allocator.reserved_bytes
    for key in list(blocks):
        allocator.release(key)
    assert allocator.allocated_bytes == 0
    free = allocator.free_blocks
    assert sum(free) == before == allocator.reserved_bytes
    assert all(size in (2 * MIB, 20 * MIB) or size % (2 * MIB) == 0 for size in free)


def test_a_real_history_leaves_what_the_real_allocator_left() -> None:
    """An H200's: every allocation of OPT-350m's loading and two steps, and at each of its marks
    what torch had allocated and reserved."""
    document = json.loads(gzip.decompress((MEASURED / "allocator_h200.json.gz").read_bytes()))
    marks = {(at, allocated, reserved) for _, at, allocated, reserved in document["marks"]}
    allocator, number, seen = CachingAllocator(), 0, set()
    for at, event in enumerate([*document["events"], None]):
        seen.add((at, allocator.allocated_bytes, allocator.reserved_bytes))
        if event is None:
            break
        if event > 0:
            number += 1
            allocator.allocate(number, event)
        else:
            allocator.release(-event)
    assert number > 4000
    assert marks <= seen
