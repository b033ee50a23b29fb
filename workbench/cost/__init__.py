"""What quantization costs a model: its loss, layer by layer, and what the memory that is left would buy back."""
