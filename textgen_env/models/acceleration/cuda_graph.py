"""A model whose step is one launch: a CUDA graph in place of some hundred kernels.

A step of a small model is so short that an accelerator waits for the host to launch it. So a step
is recorded once for each shape of the memory that it reads and writes, and replayed on tensors that
stay where they are: what a step begins with is copied there, unless the step before left it there.
A recording belongs to one text at a time (a batch of them); two that are written in turn have one
each.
"""

import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, Self, TypeVar, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textgen_env.models.cache_ops import each_tensor, tensors_of
from textgen_env.models.sequence_model import AnyCache, Cache, SequenceModel
from textgen_env.types import SpecialTokens

M = TypeVar("M")
Record = Callable[[Callable[[], None]], Callable[[], object]]
"""Makes of some work what repeats it on the same tensors."""

WIDTHS = 16  # sources are padded to a multiple of so many tokens, so that shapes come again
WARNING = (
    "steps of {} cannot be recorded as a CUDA graph and are launched kernel by kernel, which is "
    "slower: they wait for the device or depend on what they compute, got {}"
)
RECORDINGS, MEMORY = 32, 2**30  # how many are kept of a model, and bytes that they hold together


@runtime_checkable
class StaticShapeCache(Cache, Protocol):
    """A cache that a step leaves in the shape in which it found it, if there was room."""

    def reserve(self) -> Self:
        """The cache with room for one more step."""
        ...

    def moved(self) -> Self:
        """The cache as after a step in all that the host alone knows; no tensor changes."""
        ...


def with_cuda_graphs(model: M) -> M:
    """A model that shares `model`'s weights and replays its steps, if it is on a CUDA device.

    Args:
        model: in evaluation mode; one that is no `nn.Module`, or elsewhere, is returned as it is.
            Its weights may be changed in place.
    """
    if not isinstance(model, nn.Module) or not all(each.is_cuda for each in model.parameters()):
        return model
    return cast("M", GraphedModel(cast("SequenceModel", model), cuda_graph))


def cuda_graph(work: Callable[[], None]) -> Callable[[], object]:
    """`work`, whose kernels are recorded, as one launch. It is done once before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()  # libraries make themselves ready at first use, which cannot be recorded
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay


class GraphedModel:
    """A `SequenceModel` that replays the steps of another one with static-shape caches.

    No gradient comes out of such steps.

    Args:
        model: in evaluation mode.
        record: how a step is made to be repeated.
    """

    def __init__(self, model: SequenceModel, record: Record) -> None:
        self.model, self.record = model, record
        self._recordings: list[_Recording] = []  # those taken last at the end
        self._can = True  # until it was found to be otherwise

    @property
    def special(self) -> SpecialTokens:
        """The ids of padding, start and end."""
        return self.model.special

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.model.vocab_size

    def start(self, source: Tensor, max_steps: int) -> AnyCache:
        """The model's own cache; a source is made wider if the model knows texts of any length."""
        if getattr(self.model, "max_positions", None) is None:
            source = F.pad(source, (0, -source.shape[1] % WIDTHS), value=self.special.pad)
        return self.model.start(source, max_steps)

    def step(self, previous: Tensor, cache: AnyCache) -> tuple[Tensor, AnyCache]:
        """Logits (B, V) of the next token, and the cache after this step."""
        held = cache if isinstance(cache, _Held) else None
        if held is None and not (self._can and isinstance(cache, StaticShapeCache)):
            return self.model.step(previous, cache)
        inner = (held.cache if held else cast("StaticShapeCache", cache)).reserve()
        try:
            with torch.inference_mode(False), torch.no_grad():
                recording = self._recording(previous, inner, held)
                recording.take(previous, inner)
                recording.replay()
        except RuntimeError as error:
            if self._recordings:
                raise
            self._can = False
            warnings.warn(WARNING.format(type(self.model).__name__, error), stacklevel=2)
            return self.model.step(previous, inner)
        return recording.logits.clone(), recording.hold(recording.own(inner.moved()))

    def sequence_logits(self, source: Tensor, actions: Tensor) -> Tensor:
        """Logits (B, T, V) of every action."""
        return self.model.sequence_logits(source, actions)

    def _recording(
        self, previous: Tensor, cache: StaticShapeCache, held: "_Held | None"
    ) -> "_Recording":
        """One that is held by this text or by none, and has the shapes of `cache`."""
        shapes = _shapes(cache)
        if held is not None and held.recording.shapes == shapes:
            return held.recording
        for recording in reversed(self._recordings):
            if recording.free and recording.shapes == shapes:
                self._recordings.remove(recording)
                break
        else:
            self._forget()
            recording = _Recording(self.model, previous, cache, self.record)
        self._recordings.append(recording)
        return recording

    def _forget(self) -> None:
        """Make room for one more, by those that nobody holds and that were taken longest ago."""
        for recording in [each for each in self._recordings if each.free]:
            held = sum(each.nbytes for each in self._recordings)
            if len(self._recordings) < RECORDINGS and held <= MEMORY:
                return
            self._recordings.remove(recording)


class _Recording:
    """A step on tensors of its own.

    Attributes:
        shapes: of the cache.
        nbytes: of the cache.
        logits: (B, V) of the last step.
        replay: makes the next one.
    """

    def __init__(
        self, model: SequenceModel, previous: Tensor, cache: StaticShapeCache, record: Record
    ) -> None:
        self.shapes = _shapes(cache)
        self.nbytes = sum(tensor.nbytes for tensor in tensors_of(cache))
        self._previous, self._cache = previous.clone(), each_tensor(cache, torch.clone)
        self._holder: Callable[[], _Held | None] = lambda: None
        logits, _ = model.step(previous.clone(), each_tensor(cache, torch.clone))
        self.logits = logits.clone()
        self.replay = record(partial(self._work, model))

    @property
    def free(self) -> bool:
        """Whether nobody goes on from what it holds."""
        return self._holder() is None

    def take(self, previous: Tensor, cache: StaticShapeCache) -> None:
        """Have the next step begin with these."""
        self._previous.copy_(previous)
        _copy(cache, self._cache)

    def own(self, known: StaticShapeCache) -> StaticShapeCache:
        """The cache after the last step; `known` has what the host knows of it."""
        tensors = iter(tensors_of(self._cache))
        return each_tensor(known, lambda _: next(tensors))

    def hold(self, cache: StaticShapeCache) -> "_Held":
        """`cache`, which may share memory with this recording, and so nobody else shall use it."""
        held = _Held(cache, self)
        self._holder = weakref.ref(held)
        return held

    def _work(self, model: SequenceModel) -> None:
        logits, after = model.step(self._previous, self._cache)
        self.logits.copy_(logits)
        _copy(after, self._cache)


@dataclass(frozen=True, eq=False)
class _Held:
    """A cache whose tensors are a recording's, which nobody else uses as long as this exists."""

    cache: StaticShapeCache
    recording: _Recording

    def select_rows(self, index: Tensor) -> Cache:
        """Copies of some rows."""
        return self.cache.select_rows(index)

    def repeat_rows(self, count: int) -> Cache:
        """Copies of each row."""
        return self.cache.repeat_rows(count)

    def reorder_rows(self, index: Tensor) -> Cache:
        """Copies of rows in another order."""
        return self.cache.reorder_rows(index)

    def reset_rows(self, mask: Tensor, fresh: AnyCache, index: Tensor) -> "_Held":
        """The cache itself with some rows begun anew."""
        begun = fresh.cache if isinstance(fresh, _Held) else fresh
        return self.recording.hold(self.cache.reset_rows(mask, begun, index))


def _copy(cache: StaticShapeCache, own: StaticShapeCache) -> None:
    """Write into `own`'s tensors what `cache`'s hold, if those are others."""
    for mine, other in zip(tensors_of(own), tensors_of(cache), strict=True):
        if mine is not other:
            mine.copy_(other)


def _shapes(cache: StaticShapeCache) -> tuple[tuple[torch.Size, torch.dtype], ...]:
    return tuple((tensor.shape, tensor.dtype) for tensor in tensors_of(cache))
