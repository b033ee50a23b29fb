"""Training runs: a configuration, a folder, and two processes that outlive the notebook.

``config``, ``settings`` and ``checks`` (what to train), ``dataset_files``, ``row_files``, ``chats`` and ``data`` (rows and
their loss mask), ``model_checks`` and ``preflight`` (what stops a run before it starts), ``recipe`` (the same as plain code),
``runs`` (launch, attach, steer), ``folder`` and ``events`` (what a run leaves on disk), ``fingerprints`` and ``origins`` (what
it began with), ``host`` (what the operating system knows of processes), ``runtime`` (Colab and Kaggle). Packages: ``worker``
(the process that trains), ``watch`` (its supervisor) and ``results`` (card, receipt, merging, export). Only the worker's parts
import torch.
"""
