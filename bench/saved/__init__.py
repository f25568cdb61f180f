"""Trained adapters: what is in their files, and what PEFT would do with it on a model."""
