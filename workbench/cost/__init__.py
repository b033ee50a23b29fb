"""What quantization costs a model: how far its predictions move from those in 16 bits, and its held-out loss.

``evaluation``, ``curve``, ``sensitivities`` and ``mixing`` are what a user calls. Below them: ``assignments`` (which modules
are quantized, and how), ``jobs`` (model and held-out rows, and what measuring them takes), ``measurements`` (a folder of what
was measured), ``row_costs`` (the rows' sums, with intervals and ranks), ``process`` (what adds to a folder), ``skip_names``
(names for a configuration). The process has parts of its own: ``worker``, ``engine`` and ``divergence``. ``methods`` compares
ways to train, ``repairs`` says what an adapter makes up for, ``deployed`` what it loses on other bases. Only ``engine``,
``divergence``, ``repairing`` and ``deploying`` import torch.
"""
