"""What quantization costs a model: its held-out loss, not only the error of its weights.

``evaluation``, ``sensitivities`` and ``mixing`` are what a user calls. Below them: ``points`` (which modules are quantized, and
how), ``jobs`` (model and held-out rows), ``measurements`` (a folder of what was measured), ``process`` (what adds to it),
``intervals`` (the bootstrap), ``left_out`` (names for a configuration), ``effort`` (what measuring will take). The process has
parts of its own: ``worker``, ``engine``, ``wide``. ``methods`` compares ways to train, ``repairs`` tells what an adapter makes
up for. Nothing but ``engine``, ``wide`` and ``repairing`` imports torch.
"""
