"""LatentQA as published."""

from typing import ClassVar

from lensbench.inspectors.verbalizers.oracle import Oracle


class LatentQA(Oracle):
    """A decoder of LatentQA, asked as it was trained to be (Pan et al. 2024, arXiv 2412.08686).

    A first turn of placeholders, where the output of block 0 is written over with the vectors, a turn that claims to
    have analysed them, the question; both turns of the decoder are headed `reflect`. The published decoder reads the
    output of block 15 at every token: `--sites text --layers 16`.
    """

    name: ClassVar[str] = "latentqa"
    default_convention: ClassVar[str] = "latentqa"
