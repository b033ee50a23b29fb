"""What quantization costs a model: its held-out loss, not only the error of its weights.

``points`` (which modules are quantized, and how), ``jobs`` (model and held-out rows), ``measurements`` (the folder of what was
measured, and the process that adds to it), ``unfolding`` (rows as they finish), ``intervals`` (the bootstrap), ``evaluation``,
``sensitivities`` and ``mixing`` (what a user calls), and the process's own parts: ``worker``, ``engine``, ``wide``. Only
those three import torch.
"""
