"""One tensor in few bits: formats, scales, codes, error, outliers, and the arithmetic of a single weight."""
