"""Drawings on the page: plotly plots and block maps, and the patches that keep every page up to date."""
