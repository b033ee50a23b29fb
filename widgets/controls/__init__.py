"""The small controls that views are built from."""
