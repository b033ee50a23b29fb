"""The training cell: its form, the run while it lasts, and what is left of it."""
