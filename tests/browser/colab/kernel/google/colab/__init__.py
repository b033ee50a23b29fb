"""Stands in for Colab's own package, of which a kernel there has imported this much before its first cell.

``google`` has no file of its own: it stays a namespace that protobuf shares.
"""

from google.colab import output

__all__ = ["output"]
