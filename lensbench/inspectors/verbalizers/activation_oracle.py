"""Activation Oracles as published."""

from typing import ClassVar

from lensbench.inspectors.verbalizers.oracle import Oracle


class ActivationOracle(Oracle):
    """An Activation Oracle, asked as it was trained to be (Karvonen et al. 2025, arXiv 2512.15674).

    It is `oracle` under a name of its own, for adapters that others have trained: the recipe is that of the paper, or
    of the `ao_config.json` beside the adapter. The published adapters read the outputs of the blocks at a quarter, half
    and three quarters of the depth, which is `--set activation_oracle.layers=...` where no file says so.
    """

    name: ClassVar[str] = "activation_oracle"
