"""Conversion of a real pretrained model, FLAN-T5-small fine-tuned to write titles.

The package `traceforge-title-model` (requirements-models.txt) contains it as two ONNX graphs with
8-bit weights. The graphs are read as protocol buffers and written as a folder of `transformers`.
Nothing of the package is imported.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

DATA = "data/span"
# Numbers of the fields of protocol buffers
GRAPH = 7  # in a model
NODE, INITIALIZER = 1, 5  # in a graph
NODE_INPUT, NODE_NAME, NODE_KIND = 1, 3, 4  # in a node
DIMS, DATA_TYPE, FLOATS, INTS, NAME, RAW = 1, 2, 4, 5, 8, 9  # in a tensor
DTYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64}


def folder_of_package():
    """Return the folder of the package's files, or None if it is not installed."""
    spec = find_spec("traceforge_title_model")
    return Path(spec.origin).parent / DATA if spec and spec.origin else None


def read_varint(buffer, offset):
    """Return the variable-length integer at `offset`, and the offset behind it."""
    value = shift = 0
    while True:
        byte = buffer[offset]
        value |= (byte & 127) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 128:
            return value, offset


def read_fields(buffer):
    """Yield the number and the value of each field of a message; a value is an int or bytes."""
    offset = 0
    while offset < len(buffer):
        key, offset = read_varint(buffer, offset)
        match key & 7:
            case 0:
                value, offset = read_varint(buffer, offset)
            case 1 | 5 as wire_type:
                size = 8 if wire_type == 1 else 4
                value, offset = buffer[offset : offset + size], offset + size
            case 2:
                size, offset = read_varint(buffer, offset)
                value, offset = buffer[offset : offset + size], offset + size
        yield key >> 3, value


def read_integers(values):
    """Return the integers of a repeated field, whose values are single integers or packed bytes."""
    found = []
    for value in values:
        if isinstance(value, int):
            found.append(value)
            continue
        offset = 0
        while offset < len(value):
            item, offset = read_varint(value, offset)
            found.append(item - (1 << 64) if item >> 63 else item)
    return found


def read_tensor(message):
    """Return the name and the array of a tensor; None as array if its dtype is not numeric."""
    parts = {}
    for number, value in read_fields(message):
        parts.setdefault(number, []).append(value)
    dtype, name = DTYPES.get(parts[DATA_TYPE][0]), bytes(parts[NAME][0]).decode()
    if dtype is None:
        return name, None
    if RAW in parts:
        array = np.frombuffer(parts[RAW][0], dtype)
    elif FLOATS in parts:
        array = np.concatenate([np.frombuffer(value, np.float32) for value in parts[FLOATS]])
    else:
        array = np.array(read_integers(parts.get(INTS, [])), dtype)
    return name, array.reshape(read_integers(parts.get(DIMS, [])))


def read_graph(path):
    """Return the arrays by name, and the names of weights by that of the node that uses them."""
    model = read_fields(memoryview(path.read_bytes()))
    (graph,) = (value for number, value in model if number == GRAPH)
    arrays, products = {}, {}
    for number, value in read_fields(graph):
        if number == INITIALIZER:
            name, array = read_tensor(value)
            arrays[name] = array
        elif number == NODE:
            texts = ((field, text) for field, text in read_fields(value) if field <= NODE_KIND)
            parts = [(field, bytes(text).decode()) for field, text in texts]
            found = {field: text for field, text in parts if field != NODE_INPUT}
            if found.get(NODE_KIND) == "MatMulInteger":
                inputs = [text for field, text in parts if field == NODE_INPUT]
                products[found[NODE_NAME]] = inputs[1].removesuffix("_quantized")
    return arrays, products


def dequantize(arrays, name):
    scale, zero = (arrays[f"{name}_{part}"].astype(np.float32) for part in ("scale", "zero_point"))
    return (arrays[f"{name}_quantized"].astype(np.float32) - zero) * scale


def weights_of(path):
    """Return the weights in a graph by their names in `transformers`."""
    arrays, products = read_graph(path)
    named = {}
    for node, weight in products.items():  # "/enc/block.0/layer.0/SelfAttention/q/MatMul_quant"
        _, *parts, _ = node.split("/")
        named[".".join([*parts, "weight"])] = dequantize(arrays, weight).T
    for name in arrays:
        stem = name.removesuffix("_quantized")
        if stem.endswith(".weight"):
            named[stem] = arrays[name] if name == stem else dequantize(arrays, stem)
    return {
        name.removeprefix("m.").replace("enc.", "encoder."): torch.from_numpy(array.copy())
        for name, array in named.items()
    }


def save_flan(package, folder):
    """Write the model in `package` to `folder` as `transformers` does, and return the folder."""
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
