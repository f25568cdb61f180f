"""The match ledger: what each entry of a LoRA configuration reaches on a model, and what nothing.

The rules are those of PEFT's injection, read off a module table instead of a live model.
"""

from bench.targets.ledger import Adapted, DeadField, Entry, Hazard, Ledger
from bench.targets.matching import match

__all__ = ["Adapted", "DeadField", "Entry", "Hazard", "Ledger", "match"]
