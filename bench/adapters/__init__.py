"""The LoRA configuration and the checks of its fields."""
