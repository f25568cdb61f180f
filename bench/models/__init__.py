"""The base model: its architecture, module table, roles, class, precision and quantization."""
