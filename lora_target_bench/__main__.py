"""`python -m lora_target_bench`: `python -m bench`, also beside somebody else's `bench/`."""

from __future__ import annotations

import sys

from lora_target_bench.cli import command as main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
