"""Training runs: a configuration, a folder, and two processes that outlive the notebook.

``config`` (what to train), ``data`` (rows and their loss mask), ``runs`` (launch, attach, steer), ``folder`` and ``events``
(what a run leaves on disk), ``supervisor`` and ``worker`` (the two processes), and the worker's own parts: ``model``,
``trainer``, ``optimizers``, ``telemetry``, ``paging``, ``endings``. Only the worker's parts import torch.
"""
