"""Closed forms: what a configuration trains and what it adds, term by term.

`lora` holds LoRA and its variants, `kinds` the other methods' formulas and `prompts` those that
train virtual tokens, `methods` puts one on a model, `budgets` all of them side by side;
`settings` says what values their fields may hold, `terms` what a count adds up to, and how large
the base model is. Nothing
here imports torch or PEFT: what PEFT really creates is counted elsewhere, and the suites hold the
two against each other.
"""

from bench.formulas.lora import lora_parameters
from bench.formulas.terms import Parameters, Term

__all__ = ["Parameters", "Term", "lora_parameters"]
