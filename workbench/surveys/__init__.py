"""Every tensor of a model measured, and formats compared at equal bits."""
