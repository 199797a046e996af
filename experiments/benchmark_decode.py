"""Decode speed of students beside their teacher: engines, precisions and batch sizes.

All write the same sentences in one process, in turn, several times over. Memory alone is measured
elsewhere: each model in a process of its own, whose peak the kernel (Linux) tells.
"""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

