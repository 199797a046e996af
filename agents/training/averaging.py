"""Moving average of a student's weights, which is what is evaluated and kept in their place."""

import copy

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from textgen_env.models.storage import Model


class WeightAverage:
    """Exponential moving average of the weights that are trained.

    The average begins with the first weights. After update t, counted from 0, it is
    d_t average + (1 - d_t) weights with d_t = min(decay, (1 + t) / (10 + t)), so that the first
    weights are soon forgotten. Weights that are not trained, and buffers, are the student's own
    tensors: the memory is that of one more copy of what is trained.

    Args:
        student: the model that is trained.
        decay: in [0, 1); at 0 the average is the weights.

    Source: Polyak and Juditsky 1992; the growing decay: Marian, arXiv:1804.00344.
    """

    def __init__(self, student: Model, decay: float) -> None:
        self.decay = decay
        fixed = [weight for weight in student.parameters() if not weight.requires_grad]
        shared: dict[int, object] = {id(tensor): tensor for tensor in [*fixed, *student.buffers()]}
        self.model = copy.deepcopy(student, shared).eval().requires_grad_(False)
        pairs = zip(self.model.parameters(), student.parameters(), strict=True)
        self._pairs = [(own, weight) for own, weight in pairs if own is not weight]

    def add(self, update: int) -> None:
        """Move the average towards the student's weights after update number `update`."""
        decay = min(self.decay, (1 + update) / (10 + update))
        averages: list[Tensor] = [own for own, _ in self._pairs]
        weights: list[Tensor] = [weight.detach() for _, weight in self._pairs]
        get_ema_multi_avg_fn(decay)(averages, weights, update)
