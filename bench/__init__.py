"""What a LoRA configuration reaches, what it costs, and whether anything changed."""

__version__ = "0.1.0"
