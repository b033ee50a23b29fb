"""Compiled loops over spans of weights, and the threads they run on; no other package of ours is imported here."""
