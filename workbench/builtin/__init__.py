"""The embedded model: its weights, its card, the example dataset, and the scripts that made them."""
