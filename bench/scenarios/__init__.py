"""Scenarios, what they are applied to, and what their declarations say of them."""
