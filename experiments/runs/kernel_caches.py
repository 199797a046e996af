"""Limits of what PyTorch's libraries keep of matrix products that they have compiled for CPUs.

A product in bfloat16 is compiled for its shape, and each of two libraries, oneDNN and ideep, keeps
the last thousand of them. The number of tokens of a batch is another one at almost every update, so
that most of what is kept is never used again. Decoding does use it again, as rows end one by one,
and takes up to a fifth longer with these limits, which are therefore for training alone.
"""

import os

KEPT_PRODUCTS = {"LRU_CACHE_CAPACITY": "32", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
"""Variable of the environment -> products that a library keeps: those of one update."""


def limit_kept_products() -> None:
    """Let oneDNN and ideep keep few products in a process that trains, and in those that it begins.

    Call it before the first product. What the environment says already holds.
    """
    for name, count in KEPT_PRODUCTS.items():
        os.environ.setdefault(name, count)
