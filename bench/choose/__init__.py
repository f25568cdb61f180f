"""Which modules? A model's role scenarios: what each adapts, costs, and is known for."""
