"""Small students of each kind whose texts vary and end, for tests of exports."""

import torch

from tests.support.export_models import enlarge_weights, varied_transformer
from textgen_env.models.hybrid import Hybrid, HybridConfig
from textgen_env.models.recurrent import Recurrent, RecurrentConfig


def varied_hybrid(unit):
    """Return a hybrid with 64 tokens and a layer on each side, whose texts vary and end."""
    torch.manual_seed(0)
    model = Hybrid(HybridConfig(64, 32, 2, 64, 1, 1, unit=unit))
    enlarge_weights(model)
    return model.eval()


def varied_recurrent():
    """Return a recurrent model of two layers on both sides with 64 tokens, likewise."""
    torch.manual_seed(0)
    model = Recurrent(RecurrentConfig(64, 32, num_decoder_layers=2))
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            weight.add_(0.5 * torch.randn(weight.shape))
        model.norm.bias += model.embedding.weight[model.special.end]
    return model.eval()


STUDENTS_BY_NAME = {
    "recurrent": varied_recurrent,
    "transformer": lambda: varied_transformer()[0],
    **{unit: lambda unit=unit: varied_hybrid(unit) for unit in ("ssru", "sru", "sru_pp", "gru")},
}
