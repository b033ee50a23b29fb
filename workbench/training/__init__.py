"""Training runs: a configuration, a folder, and two processes that outlive the notebook.

``config`` and ``checks`` (what to train), ``dataset_files``, ``row_files``, ``chats`` and ``data`` (rows and their loss mask),
``preflight`` (what this machine has to say against it), ``recipe`` (the same as plain code), ``runs`` (launch, attach, steer),
``folder`` and ``events`` (what a run leaves on disk), ``host`` (what the operating system knows of processes), ``supervisor``
and ``worker`` (the two processes), and the worker's own parts: ``model``, ``trainer``, ``measurements``, ``optimizers``,
``telemetry``, ``paging``, ``endings``. Only the worker's parts import torch.
"""
