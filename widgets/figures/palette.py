"""The colours and marks of every figure, each of them stated here once. What has no colour of its own takes the page's."""

from __future__ import annotations

LIGHT_COLOURS = BLUE, VERMILION, GREEN, PURPLE, OCHRE, SKY, CHARCOAL = (
    "#0072b2", "#d55e00", "#009e73", "#aa4f8a", "#b07d00", "#3a9bd1", "#5c5c5c",
)  # fmt: skip
"""Okabe and Ito's colours, which stay apart for colour-blind readers: in their order on a light page."""
DARK_COLOURS = ("#56b4e9", "#ff9b45", "#2fc79a", "#e39ac4", "#f0e442", "#8fa8ff", "#b8b8b8")
"""Lighter ones, for a dark page."""

FORMAT_COLOURS = ("#2a86c8", "#e0701a", "#1a9f78")
"""Blue, orange and green near these, legible on light and dark: the first, second and third format in every view."""
QUIET = "rgba(128,128,128,0.55)"
"""Bands, outlines and lines that are there to compare with."""
GREY, REFERENCE = "#8c8c8c", "#7f7f7f"
CHOSEN = "#ff2d55"
"""What the reader chose."""
CRIMSON = "#c2185b"
"""Limits that the reader set, and pages on their way to the host."""

SYMBOLS = (
    "circle", "square", "diamond", "cross", "x", "triangle-up", "triangle-down", "star", "hexagram", "pentagon", "bowtie",
)  # fmt: skip
"""One a line, where there are more lines than distinguishable colours."""
