"""Models that replay their decoding steps as CUDA graphs.

A step of a small model is so short that the device waits for the host to launch its kernels. So a
step is recorded once for each shape of its cache, and replayed with a single launch. A replay reads
and writes tensors at fixed addresses: the cache is copied there, unless the previous step left it
there. A recorded step belongs to one batch at a time. Batches that are decoded in turn have a
recorded step each.
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

from textgen_env.models.cache_ops import map_tensors, tensors_of
from textgen_env.models.sequence_model import AnyCache, Cache, SequenceModel
from textgen_env.types import SpecialTokens

GraphableT = TypeVar("GraphableT")
CaptureFn = Callable[[Callable[[], None]], Callable[[], object]]
"""Function that records some work and returns a callable that repeats it on the same tensors."""

SOURCE_WIDTH_MULTIPLE = 16  # sources are padded to a multiple of it, so that shapes repeat
MAX_GRAPHS = 32  # recorded steps kept for each model
MAX_GRAPH_BYTES = 2**30  # bytes of all their caches, above which unused ones are dropped
CAPTURE_WARNING = (
    "steps of {} cannot be recorded as a CUDA graph and are launched kernel by kernel, which is "
    "slower: they wait for the device or depend on computed values; the error was: {}"
)


@runtime_checkable
class StaticShapeCache(Cache, Protocol):
    """Cache whose tensors keep their shapes in a step, once it has been reserved."""

    def reserve(self) -> Self:
        """Return the cache with capacity for one more step."""
        ...

    def advance_host_state(self) -> Self:
        """Return the cache with its host-side values as after a step; tensors do not change."""
        ...


def with_cuda_graphs(model: GraphableT) -> GraphableT:
    """Return a model that shares `model`'s weights and replays its steps, if it is on CUDA.

    Args:
        model: model in evaluation mode. It is returned unchanged if it is not an `nn.Module` or not
            on a CUDA device. Its weights may later be changed in place.
    """
    if not isinstance(model, nn.Module) or not all(each.is_cuda for each in model.parameters()):
        return model
    return cast("GraphableT", GraphedModel(cast("SequenceModel", model), capture_cuda_graph))


def capture_cuda_graph(work: Callable[[], None]) -> Callable[[], object]:
    """Run `work` once, record its kernels as a CUDA graph, and return the graph's launch."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()  # libraries initialize themselves at first use, which cannot be recorded
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay


class GraphedModel:
    """A `SequenceModel` that replays the steps of another one if that has static-shape caches.

    No gradient flows through replayed steps. A model whose steps cannot be recorded is stepped
    directly, after a warning.

    Args:
        model: model in evaluation mode.
        capture: function that records a step.
    """

    def __init__(self, model: SequenceModel, capture: CaptureFn) -> None:
        self.model, self.capture = model, capture
        self._graphed_steps: list[_GraphedStep] = []  # the most recently used at the end
        self._can_capture = True

    @property
    def special(self) -> SpecialTokens:
        """Ids of the padding, start and end tokens."""
        return self.model.special

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary, V."""
        return self.model.vocab_size

    def start(self, source: Tensor, max_steps: int) -> AnyCache:
        """Return the model's own cache, with sources padded unless their length is limited."""
        if getattr(self.model, "max_positions", None) is None:
            missing = -source.shape[1] % SOURCE_WIDTH_MULTIPLE
            source = F.pad(source, (0, missing), value=self.special.pad)
        return self.model.start(source, max_steps)

    def step(self, previous: Tensor, cache: AnyCache) -> tuple[Tensor, AnyCache]:
        """Return the logits (B, V) of the next token and the cache after this step."""
        owned = cache if isinstance(cache, GraphOwnedCache) else None
        if owned is None and not (self._can_capture and isinstance(cache, StaticShapeCache)):
            return self.model.step(previous, cache)
        inner = (owned.cache if owned else cast("StaticShapeCache", cache)).reserve()
        try:
            with torch.inference_mode(False), torch.no_grad():
                graphed = self._graphed_step(previous, inner, owned)
                graphed.copy_in(previous, inner)
                graphed.replay()
        except RuntimeError as error:
            if self._graphed_steps:
                raise
            self._can_capture = False
            message = CAPTURE_WARNING.format(type(self.model).__name__, error)
            warnings.warn(message, stacklevel=2)
            return self.model.step(previous, inner)
        after = graphed.output_cache(inner.advance_host_state())
        return graphed.logits.clone(), graphed.acquire(after)

    def sequence_logits(self, source: Tensor, actions: Tensor) -> Tensor:
        """Return the logits (B, T, V) of every action."""
        return self.model.sequence_logits(source, actions)

    def _graphed_step(
        self, previous: Tensor, cache: StaticShapeCache, owned: "GraphOwnedCache | None"
    ) -> "_GraphedStep":
        """Return a recorded step for the shapes of `cache` that no other batch uses."""
        shapes = _tensor_shapes(cache)
        if owned is not None and owned.graphed.shapes == shapes:
            return owned.graphed
        for graphed in reversed(self._graphed_steps):
            if graphed.free and graphed.shapes == shapes:
                self._graphed_steps.remove(graphed)
                break
        else:
            self._drop_unused()
            graphed = _GraphedStep(self.model, previous, cache, self.capture)
        self._graphed_steps.append(graphed)
        return graphed

    def _drop_unused(self) -> None:
        """Drop free recorded steps, least recently used first, until another one may be added."""
        for graphed in [each for each in self._graphed_steps if each.free]:
            nbytes = sum(each.nbytes for each in self._graphed_steps)
            if len(self._graphed_steps) < MAX_GRAPHS and nbytes <= MAX_GRAPH_BYTES:
                return
            self._graphed_steps.remove(graphed)


class _GraphedStep:
    """A recorded step with the tensors that it reads and writes.

    Attributes:
        shapes: shapes and dtypes of the cache's tensors.
        nbytes: size of the cache's tensors in bytes.
        logits: (B, V), logits of the last step.
        replay: callable that makes the next step.
    """

    def __init__(
        self, model: SequenceModel, previous: Tensor, cache: StaticShapeCache, capture: CaptureFn
    ) -> None:
        self.shapes = _tensor_shapes(cache)
        self.nbytes = sum(tensor.nbytes for tensor in tensors_of(cache))
        self._previous, self._cache = previous.clone(), map_tensors(torch.clone, cache)
        self._owner: Callable[[], GraphOwnedCache | None] = lambda: None
        logits, _ = model.step(previous.clone(), map_tensors(torch.clone, cache))
        self.logits = logits.clone()
        self.replay = capture(partial(self._step, model))

    @property
    def free(self) -> bool:
        """True if no cache in use shares memory with this recorded step."""
        return self._owner() is None

    def copy_in(self, previous: Tensor, cache: StaticShapeCache) -> None:
        """Copy the inputs of the next step to the recorded step's tensors."""
        self._previous.copy_(previous)
        _copy_tensors(cache, self._cache)

    def output_cache(self, host_state: StaticShapeCache) -> StaticShapeCache:
        """Return the cache after the last step, with the host-side values of `host_state`."""
        tensors = iter(tensors_of(self._cache))
        return map_tensors(lambda _: next(tensors), host_state)

    def acquire(self, cache: StaticShapeCache) -> "GraphOwnedCache":
        """Reserve this recorded step for `cache`, which may share its memory, and return that."""
        owned = GraphOwnedCache(cache, self)
        self._owner = weakref.ref(owned)
        return owned

    def _step(self, model: SequenceModel) -> None:
        logits, after = model.step(self._previous, self._cache)
        self.logits.copy_(logits)
        _copy_tensors(after, self._cache)


@dataclass(frozen=True, eq=False)
class GraphOwnedCache:
    """Cache whose tensors belong to a recorded step, which is reserved for it while it exists."""

    cache: StaticShapeCache
    graphed: _GraphedStep

    def select_rows(self, index: Tensor) -> Cache:
        """Return a cache with copies of the rows at `index`."""
        return self.cache.select_rows(index)

    def repeat_rows(self, count: int) -> Cache:
        """Return a cache with `count` copies of each row."""
        return self.cache.repeat_rows(count)

    def reorder_rows(self, index: Tensor) -> Cache:
        """Return a cache with copies of the rows at `index`, each of the same source."""
        return self.cache.reorder_rows(index)

    def reset_rows(self, mask: Tensor, fresh: AnyCache, index: Tensor) -> "GraphOwnedCache":
        """Return the cache with rows of `fresh` where `mask` is True."""
        inner = fresh.cache if isinstance(fresh, GraphOwnedCache) else fresh
        return self.graphed.acquire(self.cache.reset_rows(mask, inner, index))


def _copy_tensors(source: StaticShapeCache, destination: StaticShapeCache) -> None:
    """Copy the values of `source`'s tensors to those of `destination` where they differ."""
    for own, other in zip(tensors_of(destination), tensors_of(source), strict=True):
        if own is not other:
            own.copy_(other)


def _tensor_shapes(cache: StaticShapeCache) -> tuple[tuple[torch.Size, torch.dtype], ...]:
    return tuple((tensor.shape, tensor.dtype) for tensor in tensors_of(cache))
