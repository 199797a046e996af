"""A real pretrained model, FLAN-T5-small fine-tuned to write titles, from a package of data alone.

The package `traceforge-title-model` (requirements-models.txt) holds it as two ONNX graphs with
8-bit weights. Here they are read as what they are, protocol buffers, and written as a folder of
`transformers`; nothing of the package is imported.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

DATA = "data/span"
GRAPH, NODE, INITIALIZER = 7, 1, 5  # numbers of fields: of a model, and of a graph
NODE_INPUT, NODE_NAME, NODE_KIND = 1, 3, 4
DIMS, DATA_TYPE, FLOATS, INTS, NAME, RAW = 1, 2, 4, 5, 8, 9  # of a tensor
DTYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64}


def folder_of_package():
    """Where the package's files are, or None if it is not installed."""
    spec = find_spec("traceforge_title_model")
    return Path(spec.origin).parent / DATA if spec and spec.origin else None


def varint(buffer, place):
    value = shift = 0
    while True:
        byte = buffer[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def fields(buffer):
    """(number, value) of each field of a message: an int, or its bytes."""
    place = 0
    while place < len(buffer):
        key, place = varint(buffer, place)
        match key & 7:
            case 0:
                value, place = varint(buffer, place)
            case 1 | 5 as kind:
                size = 8 if kind == 1 else 4
                value, place = buffer[place : place + size], place + size
            case 2:
                size, place = varint(buffer, place)
                value, place = buffer[place : place + size], place + size
        yield key >> 3, value


def integers(values):
    """The integers of a field that comes any number of times, each time with one or several."""
    found = []
    for value in values:
        if isinstance(value, int):
            found.append(value)
            continue
        place = 0
        while place < len(value):
            item, place = varint(value, place)
            found.append(item - (1 << 64) if item >> 63 else item)
    return found


def tensor(message):
    """Name and array of a tensor; None for one of another dtype than numbers."""
    parts = {}
    for number, value in fields(message):
        parts.setdefault(number, []).append(value)
    dtype, name = DTYPES.get(parts[DATA_TYPE][0]), bytes(parts[NAME][0]).decode()
    if dtype is None:
        return name, None
    if RAW in parts:
        array = np.frombuffer(parts[RAW][0], dtype)
    elif FLOATS in parts:
        array = np.concatenate([np.frombuffer(value, np.float32) for value in parts[FLOATS]])
    else:
        array = np.array(integers(parts.get(INTS, [])), dtype)
    return name, array.reshape(integers(parts.get(DIMS, [])))


def read_graph(path):
    """Arrays by name, and for each product of integers its node's name and its weight's."""
    (graph,) = (value for number, value in fields(memoryview(path.read_bytes())) if number == GRAPH)
    arrays, products = {}, {}
    for number, value in fields(graph):
        if number == INITIALIZER:
            name, array = tensor(value)
            arrays[name] = array
        elif number == NODE:
            parts = [(kind, bytes(text).decode()) for kind, text in fields(value) if kind <= 4]
            found = {kind: text for kind, text in parts if kind != NODE_INPUT}
            if found.get(NODE_KIND) == "MatMulInteger":
                inputs = [text for kind, text in parts if kind == NODE_INPUT]
                products[found[NODE_NAME]] = inputs[1].removesuffix("_quantized")
    return arrays, products


def dequantized(arrays, name):
    scale, zero = (arrays[f"{name}_{part}"].astype(np.float32) for part in ("scale", "zero_point"))
    return (arrays[f"{name}_quantized"].astype(np.float32) - zero) * scale


def weights_of(path):
    """Weights in a graph by the names that `transformers` has for them."""
    arrays, products = read_graph(path)
    named = {}
    for node, weight in products.items():  # "/enc/block.0/layer.0/SelfAttention/q/MatMul_quant"
        _, *place, _ = node.split("/")
        named[".".join([*place, "weight"])] = dequantized(arrays, weight).T
    for name in arrays:
        stem = name.removesuffix("_quantized")
        if stem.endswith(".weight"):
            named[stem] = arrays[name] if name == stem else dequantized(arrays, stem)
    return {
        name.removeprefix("m.").replace("enc.", "encoder."): torch.from_numpy(array.copy())
        for name, array in named.items()
    }


def save_flan(package, folder):
    """Write the model in `package` to `folder` as `transformers` does."""
    config = T5Config(
        vocab_size=32128, d_model=512, d_kv=64, d_ff=1024, num_layers=8, num_heads=6,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    model.lm_head.weight = nn.Parameter(torch.empty(32128, 512))  # not tied to the embedding
    weights = weights_of(package / "encoder.onnx") | weights_of(package / "decoder.onnx")
    weights["decoder.embed_tokens.weight"] = weights["shared.weight"]
    model.load_state_dict(weights)
    model.save_pretrained(folder)
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(package / "tokenizer.json"), **special)
    tokenizer.save_pretrained(folder)
    return folder
