"""Seeded corruptions of a model's folder: files, values in JSON, tensors, and files added."""

import json
import os
import struct
from functools import partial
from random import Random

import torch
from safetensors.torch import load_file, save_file

from tests.support.mutations import changed, paths, removed, replaced

WEIGHTS, INDEX, DIGESTS = "model.safetensors", "model.safetensors.index.json", "weights.sha256"
HUGE = [2**20, 2**31, 2**64, -1, -(2**40), 1e308, float("nan"), float("inf")]
OTHER = [0, 1, 3, 0.5, "", "x", "\ud800", "x" * 100_000, None, [], {}, True, [1, 2], [[[]]]]
NO_JSON = [b"", b"null", b"[]", b"{}", b'""', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000]
TARGETS = ["/dev/zero", "/dev/stdin", "/", "nowhere"]
TENSORS = {
    "transposed": lambda tensor: tensor.mT if tensor.dim() > 1 else tensor[None],
    "longer": lambda tensor: torch.cat([tensor, tensor]),
    "shorter": lambda tensor: tensor[:-1],
    "empty": lambda tensor: tensor[:0],
    "scalar": lambda tensor: tensor.reshape(-1)[0].clone(),
    "int64": lambda tensor: tensor.long(),
    "int8": lambda tensor: tensor.to(torch.int8),
    "bool": lambda tensor: tensor.bool(),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "bfloat16": lambda tensor: tensor.bfloat16(),
    "double": lambda tensor: tensor.double(),
    "nan": lambda tensor: torch.full_like(tensor, float("nan")),
    "overflow": lambda tensor: torch.full_like(tensor, 3e38),
}
HEADERS = {
    "shape": [[2**40], [2**62, 2**62], [-1, -1], [0], ["a"], None, [1] * 1000],
    "data_offsets": [[0, 2**50], [-1, 3], [5, 1], [0, 0], "x"],
    "dtype": ["F99", "I32", "", None, 1],
}
ADDED = {
    "adapter_config.json": ["{}", "x"],
    "generation_config.json": ['{"decoder_start_token_id": 99999}', '{"max_length": -1}'],
    "special_tokens_map.json": ["x", '{"eos_token": 5}', '{"pad_token": "new"}'],
    "added_tokens.json": ["x", '{"new": 1000000}', '{"new": -1}', '{"w3": 2}'],
    "tokenizer_config.json": ["x", "[]"],
    "vocab.json": ["x"],
    "spiece.model": ["x"],
    DIGESTS: ["x", f"{'0' * 64}  {WEIGHTS}\n", f"{'0' * 64}  ../{WEIGHTS}\n"],
}


def corruptions(folder):
    """Yield the kind, the name and the function of each corruption of a copy of `folder`."""
    for name in sorted(path.name for path in folder.iterdir()):
        yield from _of_files(name, (folder / name).stat().st_size)
        if name.endswith(".json"):
            yield from _of_json(name, json.loads((folder / name).read_text()))
    yield from _of_tensors(sorted(load_file(folder / WEIGHTS)))
    yield from _of_layout(sorted(load_file(folder / WEIGHTS)))
    for name, contents in ADDED.items():
        yield "added", f"{name} is added as a device", partial(link, name=name, target="/dev/zero")
        for text in contents:
            yield "added", f"{name} is {text!r}", partial(write, name=name, content=text.encode())


def chosen(folder, count, seed):
    """Return `count` corruptions, each kind in its turn."""
    draws, kinds = Random(seed), {}
    for kind, name, apply in corruptions(folder):
        kinds.setdefault(kind, []).append((name, apply))
    for each in kinds.values():
        draws.shuffle(each)
    turns = [each[turn] for turn in range(count) for each in kinds.values() if turn < len(each)]
    return turns[:count]


def write(folder, draws, *, name, content):
    del draws
    (folder / name).write_bytes(content)


def cut(folder, draws, *, name, size):
    write(folder, draws, name=name, content=(folder / name).read_bytes()[:size])


def flip(folder, draws, *, name, within):
    content = bytearray((folder / name).read_bytes())
    for _ in range(draws.choice([1, 8])):
        content[draws.randrange(min(within, len(content)))] = draws.randrange(256)
    (folder / name).write_bytes(content)


def link(folder, draws, *, name, target):
    del draws
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)


def to_pipe(folder, draws, *, name):
    del draws
    (folder / name).unlink()
    os.mkfifo(folder / name)


def to_folder(folder, draws, *, name):
    del draws
    (folder / name).unlink()
    (folder / name).mkdir()


def _of_files(name, size):
    for kept in (0, 1, size // 2, size - 1):
        yield "cut", f"{name} is cut to {kept} bytes", partial(cut, name=name, size=kept)
    for within in (100, size, size, size):
        yield "flipped", f"{name} has flipped bits", partial(flip, name=name, within=within)
    for content in NO_JSON:
        yield "replaced", f"{name} is {content[:9]!r}", partial(write, name=name, content=content)
    for target in TARGETS:
        yield "linked", f"{name} links to {target}", partial(link, name=name, target=target)
    yield "no file", f"{name} is a pipe", partial(to_pipe, name=name)
    yield "no file", f"{name} is a folder", partial(to_folder, name=name)


def _of_json(name, content):
    for path in paths(content):
        place = f"{name} {'.'.join(map(str, path))}"
        for kind, values in (("huge value", HUGE), ("other value", OTHER)):
            for value in values:
                apply = partial(_change, name=name, path=path, change=replaced(value))
                yield kind, f"{place} is {str(value)[:20]}", apply
        if path:
            apply = partial(_change, name=name, path=path, change=removed)
            yield "no value", f"{place} is gone", apply


def _change(folder, draws, *, name, path, change):
    content = changed(json.loads((folder / name).read_text()), path, change)
    write(folder, draws, name=name, content=json.dumps(content).encode())


def _of_tensors(names):
    for name in names:
        for label, change in TENSORS.items():
            yield "tensor", f"{name} is {label}", partial(_resave, name=name, change=change)
        yield "no tensor", f"{name} is gone", partial(_resave, name=name, change=None)


def _resave(folder, draws, *, name, change):
    del draws
    weights = load_file(folder / WEIGHTS)
    old = weights.pop(name)
    if change is not None:
        weights[name] = change(old)
    weights = {key: value.contiguous() for key, value in weights.items()}
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    (folder / DIGESTS).unlink(missing_ok=True)


def _of_layout(names):
    for field, values in HEADERS.items():
        for value in values:
            apply = partial(_reheader, field=field, value=value)
            yield "header", f"header with {field} {str(value)[:20]}", apply
    for size in (0, 10**8, 2**40, 2**63):
        content = struct.pack("<Q", size) + b"{}"
        yield "header", f"header of {size} bytes", partial(write, name=WEIGHTS, content=content)
    yield "header", "256 GiB of weights, none on disk", _sparse
    for file in ("../x.safetensors", "other.safetensors", "config.json", ".", "", "/etc/passwd"):
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, file)}
        yield "index", f"index that names {file!r}", partial(_index, content=index)
    for index in (None, [], {}, {"weight_map": None}, {"weight_map": {}}, {"weight_map": {"x": 1}}):
        yield "index", f"index that is {index}", partial(_index, content=index)
    for content in (b"junk", b"\x80\x04N."):
        yield "pickle", f"pickle {content!r} alone", partial(_pickle, content=content)


def _reheader(folder, draws, *, field, value):
    del draws
    content = (folder / WEIGHTS).read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    header[next(name for name in header if name != "__metadata__")][field] = value
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    (folder / DIGESTS).unlink(missing_ok=True)


def _sparse(folder, draws):
    del draws
    tensor = {"dtype": "F32", "shape": [2**36], "data_offsets": [0, 2**38]}
    header = json.dumps({"a": tensor}).encode()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 2**38)
    (folder / DIGESTS).unlink(missing_ok=True)


def _index(folder, draws, *, content):
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    write(folder, draws, name=INDEX, content=json.dumps(content).encode())
    (folder / DIGESTS).unlink(missing_ok=True)


def _pickle(folder, draws, *, content):
    (folder / WEIGHTS).unlink()
    write(folder, draws, name="pytorch_model.bin", content=content)
    (folder / DIGESTS).unlink(missing_ok=True)
