"""A model of CUDA's caching allocator, to turn tensor sizes into allocated and reserved bytes.

After `c10/cuda/CUDACachingAllocator.cpp` of PyTorch, with its default settings, one stream and
enough memory: nothing is returned to the device, and nothing runs out.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable
from dataclasses import dataclass

from bench.units import MIB

ROUNDING = 512
"""Every size is rounded up to a multiple of this (kMinBlockSize)."""
SMALL = MIB
"""Largest size served from the pool of small blocks (kSmallSize)."""
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
OWN_SEGMENT = 10 * MIB
"""From this size on an allocation gets a segment of its own (kMinLargeAlloc) ..."""
SEGMENT_ROUNDING = 2 * MIB
"""... of its size rounded up to a multiple of this (kRoundLarge)."""


def rounded(size: int, multiple: int = ROUNDING) -> int:
    """`size` bytes rounded up to a multiple; at least one multiple."""
    return max(multiple, -(-size // multiple) * multiple)


@dataclass(slots=True)
class _Block:
    address: int
    size: int
    small: bool
    free: bool = False
    before: _Block | None = None
    after: _Block | None = None


class CachingAllocator:
    """Serves sizes as torch's allocator would. All figures are bytes.

    `allocated_bytes` counts whole blocks, as `torch.cuda.memory_allocated` does; `reserved_bytes`
    counts segments, as `torch.cuda.memory_reserved` does.
    """

    def __init__(self) -> None:
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self._used: dict[Hashable, _Block] = {}
        self._free: dict[bool, list[tuple[int, int, _Block]]] = {True: [], False: []}
        """By whether they are small: sorted by size and address, which no two share."""
        self._lowest_address = 1 << 47

    def allocate(self, key: Hashable, size: int) -> int:
        """Serve `size` bytes under `key`; returns the bytes of the block, 0 for a size of 0."""
        if size <= 0:
            return 0
        wanted = -(-size // ROUNDING) * ROUNDING
        small = wanted <= SMALL
        block = self._find(wanted, small) or self._segment(wanted, small)
        if block.size - wanted >= (ROUNDING if small else SMALL + 1):
            self._split(block, wanted)
        block.free = False
        self._used[key] = block
        self.allocated_bytes += block.size
        return block.size

    def release(self, key: Hashable) -> None:
        """Take back what was served under `key`, if anything was."""
        block = self._used.pop(key, None)
        if block is None:
            return
        self.allocated_bytes -= block.size
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.free:
                self._forget(neighbour)
                block = _merged(block, neighbour)
        self._keep(block)

    def address(self, key: Hashable) -> int:
        """Where the block of `key` begins: a number to compare, no real address."""
        return self._used[key].address

    @property
    def free_blocks(self) -> list[int]:
        """The sizes of what is reserved and not allocated."""
        return [size for pool in self._free.values() for size, *_ in pool]

    def _find(self, wanted: int, small: bool) -> _Block | None:
        """The smallest free block that is large enough; of equals, the lowest address."""
        pool = self._free[small]
        at = bisect_left(pool, (wanted,))
        return pool.pop(at)[2] if at < len(pool) else None

    def _segment(self, wanted: int, small: bool) -> _Block:
        if small:
            size = SMALL_SEGMENT
        elif wanted < OWN_SEGMENT:
            size = LARGE_SEGMENT
        else:
            size = rounded(wanted, SEGMENT_ROUNDING)
        # The driver hands out addresses from the top down, so that of equal free blocks the one in
        # the newest segment is taken. Which it is decides how later requests split and fit.
        self._lowest_address -= size
        block = _Block(self._lowest_address, size, small)
        self.reserved_bytes += size
        return block

    def _split(self, block: _Block, wanted: int) -> None:
        rest = _Block(block.address + wanted, block.size - wanted, block.small)
        rest.before, rest.after = block, block.after
        if rest.after is not None:
            rest.after.before = rest
        block.after, block.size = rest, wanted
        self._keep(rest)

    def _keep(self, block: _Block) -> None:
        block.free = True
        insort(self._free[block.small], (block.size, block.address, block))

    def _forget(self, block: _Block) -> None:
        pool = self._free[block.small]
        pool.pop(bisect_left(pool, (block.size, block.address)))


def _merged(one: _Block, other: _Block) -> _Block:
    """Two neighbours as one block; `before` and `after` stay within a segment."""
    first, second = (one, other) if one.address < other.address else (other, one)
    first.size += second.size
    first.after = second.after
    if first.after is not None:
        first.after.before = first
    return first


class ExactAllocator:
    """Serves every size as it is, as the CPU does; what is reserved is what was allocated."""

    def __init__(self) -> None:
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self._used: dict[Hashable, int] = {}

    def allocate(self, key: Hashable, size: int) -> int:
        """Serve `size` bytes under `key`; returns them."""
        self._used[key] = size
        self.allocated_bytes += size
        self.reserved_bytes = max(self.reserved_bytes, self.allocated_bytes)
        return size

    def release(self, key: Hashable) -> None:
        """Take back what was served under `key`."""
        self.allocated_bytes -= self._used.pop(key)
