"""Plain functions from values to plotly figures; no widgets, no state."""
