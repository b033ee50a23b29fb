"""The process that watches a run from outside: it starts the worker, samples it, and says how it ended."""
