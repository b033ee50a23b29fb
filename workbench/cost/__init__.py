"""What quantization costs a model: its held-out loss, not only the error of its weights.

``evaluation``, ``sensitivities`` and ``mixing`` are what a user calls. Below them: ``assignments`` (which modules are
quantized, and how), ``jobs`` (model and held-out rows, and what measuring them takes), ``measurements`` (a folder of what was
measured, with its intervals), ``process`` (what adds to it), ``skip_names`` (names for a configuration). The process has parts
of its own: ``worker`` and ``engine``. ``methods`` compares ways to train, ``repairs`` says what an adapter makes up for. Only
``engine``, ``divergence`` and ``repairing`` import torch.
"""
