"""Scripts that made the embedded model; no part of the package."""
