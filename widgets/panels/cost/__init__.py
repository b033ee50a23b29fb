"""The view of what quantization costs a model."""
