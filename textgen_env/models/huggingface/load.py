"""Pretrained models of the `transformers` library: found, loaded, adapted and saved.

The door to them, which the rest may import without the extra `hf`: its packages are imported where
a model is loaded. What the two kinds of model share is in `huggingface_model.py`, and each has a
file of its own. A name that is no folder is looked up on the hub once; what is on this disk is
never asked for again.

Not done here: quantized models, code that comes with a model, and models with other memories than
keys and values, such as Mamba.
"""

import copy
import warnings
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from torch import nn

from textgen_env.models.huggingface.model import HuggingFaceConfig, HuggingFaceModel
from textgen_env.tokenizers.pretrained import Conventions, PretrainedTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXTRA = "pip install textgen-env[hf]"
FAILURES = (ImportError, OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError)
BESIDE_WEIGHTS = ("*.json", "*.txt", "*.model", "*.spm", "*.jinja")
# Attention as products: with PyTorch's fused one on a CPU an update of `benchmark-peers gkd` takes
# 1.19 of the time in float32 and 1.15 in bfloat16.
WRITTEN_OUT = "eager"


class PretrainedError(ValueError):
    """A pretrained model that cannot be had or used."""


def local_folder(name: Path) -> Path:
    """The folder of `name` on this disk, which is fetched from the hub if it is not here.

    Args:
        name: a folder, or the name of a model on the hub, such as Helsinki-NLP/opus-mt-de-en.

    Raises:
        PretrainedError: it is neither here nor can it be fetched.
    """
    if name.exists() or name.is_absolute() or len(name.parts) > 2 or ".." in name.parts:
        return name
    with suppress(Exception):  # whatever it is, the files are not here, or not all of them
        return _snapshot(name.as_posix(), local=True)
    try:
        return _snapshot(name.as_posix(), local=False)
    except ImportError as error:
        raise PretrainedError(
            f"model must be a folder, or with {EXTRA} a name on the hub, got {name}"
        ) from error
    except Exception as error:
        raise PretrainedError(
            f"model must be a folder or a name on the hub, got {name}: there is no such folder, it "
            f"was not fetched before, and the hub says: {_first_line(error)}; where there is a "
            f"network, `hf download {name.as_posix()} --local-dir FOLDER` fetches it"
        ) from error


def _snapshot(hub_name: str, *, local: bool) -> Path:
    """The folder of all files that are needed, with weights in one format.

    Raises:
        FileNotFoundError: there are no weights.
        Exception: what `huggingface_hub` raises.
    """
    from huggingface_hub import snapshot_download

    for weights in ("*.safetensors", "*.bin"):
        folder = snapshot_download(
            hub_name,
            allow_patterns=[*BESIDE_WEIGHTS, weights],
            ignore_patterns=["*/*"],
            local_files_only=local,
        )
        if any(Path(folder).glob(weights)):
            return Path(folder)
    raise FileNotFoundError(f"{hub_name} has no weights")


def load_pretrained(
    folder: Path, dtype: torch.dtype = torch.float32, lora_rank: int | None = None
) -> HuggingFaceModel:
    """The model in `folder`, on the CPU and in evaluation mode.

    Args:
        folder: as `transformers` writes it, a tokenizer in it.
        dtype: of the weights once loaded.
        lora_rank: of adapters, which are made and alone trained; None for none.

    Raises:
        PretrainedError: it cannot be loaded, or does not fit its tokenizer.
    """
    tokenizer = load_pretrained_tokenizer(folder)
    try:
        model = _loaded(folder, dtype)
        config = HuggingFaceConfig(
            model_type=model.config.model_type,
            vocab_size=tokenizer.vocab_size,
            width=model.config.hidden_size,
            lora_rank=lora_rank,
        )
        _fit(model, tokenizer)
        return _wrapped(model, config, tokenizer.conventions).eval()
    except FAILURES as error:
        raise _complaint(folder, "a model", error) from error


def load_pretrained_tokenizer(folder: Path) -> PretrainedTokenizer:
    """The tokenizer in `folder`.

    Raises:
        PretrainedError: there is none, or it cannot be used.
    """
    try:
        return PretrainedTokenizer.load(folder)
    except FAILURES as error:
        raise _complaint(folder, "a tokenizer", error) from error


def save_pretrained(model: HuggingFaceModel, folder: Path) -> None:
    """Write `model` to `folder` as `transformers` does, adapters merged into the weights."""
    inner = model.model
    if model.config.lora_rank is not None:
        inner = cast("Any", copy.deepcopy(inner)).merge_and_unload()
    inner.save_pretrained(str(folder))


def _loaded(folder: Path, dtype: torch.dtype) -> "PreTrainedModel":
    """What `transformers` makes of `folder`.

    Raises:
        ValueError: weights are missing, or its memory is not of keys and values.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        raise ValueError(f"all layers must be of attention, got {sorted(kinds)}")
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    loading: Any = auto.from_pretrained  # declared to give the model alone
    fused = torch.accelerator.is_available() or dtype == torch.float64  # of which it makes NaN
    model, found = loading(
        str(folder),
        dtype=dtype,
        attn_implementation=None if fused else WRITTEN_OUT,
        local_files_only=True,
        output_loading_info=True,
    )
    if found["missing_keys"]:
        raise ValueError(f"no weights for {sorted(found['missing_keys'])[0]}")
    return model


def _fit(model: "PreTrainedModel", tokenizer: PretrainedTokenizer) -> None:
    """Make room for a padding that was made up, which the model never reads nor writes.

    Raises:
        ValueError: the tokenizer has pieces that the model has not.
    """
    known = cast("nn.Embedding", model.get_input_embeddings()).num_embeddings
    pieces = len(tokenizer.backend)
    if pieces > known:
        raise ValueError(f"its tokenizer must have at most the model's {known} pieces: {pieces}")
    if tokenizer.vocab_size > known:
        model.resize_token_embeddings(tokenizer.vocab_size, mean_resizing=False)
        both = (model.get_input_embeddings(), model.get_output_embeddings())
        with torch.no_grad():
            for embeddings in cast("tuple[nn.Linear, nn.Linear]", both):
                embeddings.weight[known:] = 0


def _wrapped(
    model: "PreTrainedModel", config: HuggingFaceConfig, conventions: Conventions
) -> HuggingFaceModel:
    """`model` as a `SequenceModel` of its kind, with adapters if there are to be any."""
    limit = getattr(model.config, "max_position_embeddings", None)
    adapted = model if config.lora_rank is None else _with_adapters(model, config.lora_rank)
    if not model.config.is_encoder_decoder:
        from textgen_env.models.huggingface.causal import HuggingFaceCausal

        return HuggingFaceCausal(adapted, config, conventions, limit)
    from textgen_env.models.huggingface.seq2seq import HuggingFaceSeq2Seq

    return HuggingFaceSeq2Seq(adapted, config, conventions, limit, _opening(model))


def _opening(model: "PreTrainedModel") -> tuple[int, ...]:
    """What the decoder reads before it writes: its start token and perhaps a forced one.

    Raises:
        ValueError: no start token is given.
    """
    generation = model.generation_config
    assert generation is not None, "models that generate have one"
    start, forced = generation.decoder_start_token_id, generation.forced_bos_token_id
    if start is None:
        raise ValueError("decoder_start_token_id must be in config.json")
    return (start,) if forced is None else (start, forced)


def _with_adapters(model: "PreTrainedModel", rank: int) -> "PreTrainedModel":
    """`model` with adapters at every linear layer but the last, and its own weights frozen.

    Source: Hu et al. 2022, section 4.1, arXiv:2106.09685; all layers: Dettmers et al. 2023,
    section 5, arXiv:2305.14314.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    with warnings.catch_warnings():  # it asks `transformers` by names that are to be given up
        warnings.simplefilter("ignore", FutureWarning)
        return cast("PreTrainedModel", get_peft_model(model, config))


def _complaint(folder: Path, what: str, error: Exception) -> PretrainedError:
    """That `folder` holds nothing to be loaded, and the remedy if a package is missing."""
    hint = f"; {EXTRA}" if isinstance(error, ImportError) else ""
    return PretrainedError(
        f"{folder} must hold {what} that transformers can load, got: {_first_line(error)}{hint}"
    )


def _first_line(error: Exception) -> str:
    """The first line of what an error says, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
