"""Loading, adapting and saving of pretrained models of the `transformers` library.

The packages of the extra `hf` are imported only when a model is loaded, so this module can be
imported without them. A name that is not a folder is fetched from the hub once and then read from
the local cache. A folder is data: one that brings or names code is refused, and so are pickles.

Left out: quantized models, code that comes with a model, and models whose state is not a key-value
cache, such as Mamba.
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

from textgen_env.models.huggingface.folder import check_fits
from textgen_env.models.huggingface.model import HuggingFaceConfig, HuggingFaceModel
from textgen_env.models.model_files import ModelFileError
from textgen_env.tokenizers.chat import CHAT, ChatTokenizer
from textgen_env.tokenizers.folder_check import (
    SAFE,
    UnsafeFolderError,
    check_is_data,
    check_no_pickle,
)
from textgen_env.tokenizers.pretrained import (
    Conventions,
    PretrainedTokenizer,
    quiet_transformers,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HF_EXTRA = "pip install textgen-env[hf]"
LOAD_ERRORS = (ImportError, OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError)
CONFIG_PATTERNS = ("*.json", "*.txt", "*.model", "*.spm", "*.jinja")
LONGEST_CAUSE = 300  # characters of another library's error
CPU_ATTENTION = "eager"  # matrix products, which are faster on CPUs than PyTorch's fused attention


class PretrainedError(ValueError):
    """Pretrained model that cannot be found, loaded or used."""


def local_folder(name: Path, setting: str = "model") -> Path:
    """Return the folder of `name` on this disk, and fetch it from the hub if it is not there.

    Args:
        name: folder, or name of a model on the hub, such as google/flan-t5-small.
        setting: what names it, for messages.

    Raises:
        PretrainedError: the model is not on this disk and cannot be fetched.
    """
    if name.exists() or name.is_absolute() or len(name.parts) > 2 or ".." in name.parts:
        return name
    with suppress(Exception):  # whatever the error is, the local files are missing or incomplete
        return _hub_snapshot(name.as_posix(), local=True)
    try:
        return _hub_snapshot(name.as_posix(), local=False)
    except ImportError as error:
        raise PretrainedError(
            f"{setting} must be a folder, or with {HF_EXTRA} a name on the hub, got {name}"
        ) from error
    except Exception as error:
        raise PretrainedError(
            f"{setting} must be a folder or a name on the hub, got {name}: there is no such "
            f"folder, it was not fetched before, and the hub says: {first_line(error)}; where "
            f"there is a network, `hf download {name.as_posix()} --local-dir FOLDER` fetches it"
        ) from error


def _hub_snapshot(hub_name: str, *, local: bool) -> Path:
    """Return the folder of a model's files, with weights that are read without unpickling.

    Args:
        hub_name: name of a model on the hub.
        local: whether to use only files that were fetched before.

    Raises:
        FileNotFoundError: there are no weights.
        Exception: any error of `huggingface_hub`.
    """
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        hub_name,
        allow_patterns=[*CONFIG_PATTERNS, SAFE],
        ignore_patterns=["*/*"],
        local_files_only=local,
    )
    if any(Path(folder).glob(SAFE)):
        return Path(folder)
    raise FileNotFoundError(f"{hub_name} has no weights in the format safetensors")


def load_pretrained(
    folder: Path, dtype: torch.dtype = torch.float32, lora_rank: int | None = None
) -> HuggingFaceModel:
    """Return the model in `folder`, on the CPU and in evaluation mode.

    Args:
        folder: folder written by `transformers`, tokenizer included.
        dtype: dtype of the loaded weights.
        lora_rank: rank of new adapters, which are trained instead of the weights; None for none.

    Raises:
        ModelFileError: the weights are not those of the configuration.
        PretrainedError: the model cannot be loaded, does not fit its tokenizer, or asks for more
            than data: code, kernels, pickles, or files of another folder.
    """
    tokenizer = load_pretrained_tokenizer(folder)
    try:
        check_no_pickle(folder)
        with quiet_transformers():
            model = _load_transformers_model(folder, dtype)
        config = HuggingFaceConfig(
            model_type=model.config.model_type,
            vocab_size=tokenizer.vocab_size,
            width=model.config.hidden_size,
            lora_rank=lora_rank,
        )
        _fit_vocabulary(model, tokenizer)
        return _wrap_model(model, config, tokenizer.conventions).eval()
    except UnsafeFolderError as error:
        raise PretrainedError(str(error)) from None
    except ModelFileError:
        raise
    except LOAD_ERRORS as error:
        raise _load_error(folder, "a model", error) from error


def load_pretrained_tokenizer(folder: Path) -> PretrainedTokenizer:
    """Return the tokenizer in `folder`, for conversations if it was saved as one for those.

    Raises:
        PretrainedError: there is no tokenizer, it cannot be used, or the folder asks for code.
    """
    kind = ChatTokenizer if (folder / CHAT).is_file() else PretrainedTokenizer
    try:
        return kind.load(folder)
    except UnsafeFolderError as error:
        raise PretrainedError(str(error)) from None
    except LOAD_ERRORS as error:
        raise _load_error(folder, "a tokenizer", error) from error


def save_pretrained(model: HuggingFaceModel, folder: Path) -> None:
    """Write `model` to `folder` as `transformers` does, with adapters merged into the weights."""
    inner = model.model
    if model.config.lora_rank is not None:
        inner = cast("Any", copy.deepcopy(inner)).merge_and_unload()
    inner.save_pretrained(str(folder))


def _load_transformers_model(folder: Path, dtype: torch.dtype) -> "PreTrainedModel":
    """Return the model that `transformers` loads from `folder`.

    Raises:
        ValueError: weights are missing, or the model's state is not a key-value cache.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    check_is_data(folder)
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    layer_types = set(getattr(config, "layer_types", None) or ())
    if layer_types - {"full_attention", "sliding_attention"}:
        raise ValueError(f"all layers must be of attention, got {sorted(layer_types)}")
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        check_fits(folder, auto.from_config(config))
    from_pretrained: Any = auto.from_pretrained  # declared to return the model alone
    # Eager attention returns NaN in float64.
    fused = torch.accelerator.is_available() or dtype == torch.float64
    model, found = from_pretrained(
        str(folder),
        dtype=dtype,
        attn_implementation=None if fused else CPU_ATTENTION,
        local_files_only=True,
        output_loading_info=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    if found["missing_keys"]:
        raise ValueError(f"no weights for {sorted(found['missing_keys'])[0]}")
    return model


def _fit_vocabulary(model: "PreTrainedModel", tokenizer: PretrainedTokenizer) -> None:
    """Add an embedding for a made-up padding token, which the model never reads or writes.

    Raises:
        ValueError: the tokenizer has more pieces than the model.
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


def _wrap_model(
    model: "PreTrainedModel", config: HuggingFaceConfig, conventions: Conventions
) -> HuggingFaceModel:
    """Return `model` as a `SequenceModel`, with adapters if `config` has a `lora_rank`."""
    limit = getattr(model.config, "max_position_embeddings", None)
    adapted = model if config.lora_rank is None else _with_adapters(model, config.lora_rank)
    if not model.config.is_encoder_decoder:
        from textgen_env.models.huggingface.causal import HuggingFaceCausal

        return HuggingFaceCausal(adapted, config, conventions, limit)
    from textgen_env.models.huggingface.seq2seq import HuggingFaceSeq2Seq

    return HuggingFaceSeq2Seq(adapted, config, conventions, limit, _decoder_prompt(model))


def _decoder_prompt(model: "PreTrainedModel") -> tuple[int, ...]:
    """Return the tokens that the decoder reads first: its start token and any forced one.

    Raises:
        ValueError: the configuration has no start token.
    """
    generation = model.generation_config
    assert generation is not None, "models that generate have one"
    start, forced = generation.decoder_start_token_id, generation.forced_bos_token_id
    if start is None:
        raise ValueError("decoder_start_token_id must be in config.json")
    return (start,) if forced is None else (start, forced)


def _with_adapters(model: "PreTrainedModel", rank: int) -> "PreTrainedModel":
    """Return `model` with adapters at every linear layer but the last, and frozen weights.

    Source: Hu et al. 2022, section 4.1, arXiv:2106.09685; all layers: Dettmers et al. 2023,
    section 5, arXiv:2305.14314.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    with warnings.catch_warnings():  # peft uses deprecated names of `transformers`
        warnings.simplefilter("ignore", FutureWarning)
        return cast("PreTrainedModel", get_peft_model(model, config))


def _load_error(folder: Path, kind: str, error: Exception) -> PretrainedError:
    """Return an error that names `folder`, the cause, and the remedy if a package is missing."""
    hint = f"; {HF_EXTRA}" if isinstance(error, ImportError) else ""
    return PretrainedError(
        f"{folder} must hold {kind} that transformers can load, got: {first_line(error)}{hint}"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, cut if it is long, or the name of its class."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= LONGEST_CAUSE else f"{line[:LONGEST_CAUSE]}..."
