import itertools
from functools import partial

import pytest
import torch

from textgen_env import dynamics
from textgen_env.experts.dynamic_oracle import DynamicOracle, ReferenceCache
from textgen_env.experts.expert import ExpertError
from textgen_env.generation.decoding import next_action
from textgen_env.types import Examples, SpecialTokens, Trajectories, Writer

SPECIAL = SpecialTokens()
WORDS = (3, 4, 5)


def edits(left, right):
    """Return the edit distance, computed cell by cell (Wagner and Fischer 1974)."""
    row = list(range(len(right) + 1))
    for i, token in enumerate(left, 1):
        above, row[0] = row[0], i
        for j, other in enumerate(right, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (token != other))
    return row[-1]


def texts(longest):
    return [text for n in range(longest + 1) for text in itertools.product(WORDS, repeat=n)]


def optimal_by_brute_force(prefix, reference):
    """Return the next tokens that lead to the fewest edits.

    Completions longer than the reference need not be tried: their surplus words are edits.
    """
    costs = {}
    for completion in texts(len(reference)):
        token = (*completion, SPECIAL.end)[0]
        costs.setdefault(token, []).append(edits((*prefix, *completion), reference))
    best = {token: min(of_token) for token, of_token in costs.items()}
    return {token for token, cost in best.items() if cost == min(best.values())}


def padded(rows, width):
    return torch.tensor([[*row, *[SPECIAL.pad] * (width - len(row))] for row in rows])


def trajectories_of(actions, references):
    writer = torch.full_like(actions, Writer.STUDENT)
    source = torch.arange(len(actions))[:, None] + 3
    return Trajectories(source, actions, writer, actions != SPECIAL.pad, references)


@pytest.fixture(scope="module")
def cases():
    """Return all prefixes of two words with all references of up to three words."""
    return list(itertools.product(itertools.product(WORDS, repeat=2), texts(3)))


@pytest.fixture(scope="module")
def trajectories(cases):
    actions = padded([(*prefix, SPECIAL.end) for prefix, _ in cases], 3)
    references = padded([(*reference, SPECIAL.end) for _, reference in cases], 4)
    return trajectories_of(actions, references)


@pytest.fixture
def expert(trajectories):
    return DynamicOracle(Examples(trajectories.source, trajectories.reference), vocab_size=6)


def test_optimal_actions_equal_those_of_brute_force(expert, cases, trajectories):
    logits = expert.logits(trajectories)
    sizes = set()
    for row, (prefix, reference) in enumerate(cases):
        for step in range(3):
            found = (logits[row, step] > 0).nonzero().squeeze(1).tolist()
            assert set(found) == optimal_by_brute_force(prefix[:step], reference)
            sizes.add(len(found))
    assert sizes >= {1, 2, 3}, "the test needs ties"


def test_the_best_action_is_the_optimal_one_earliest_in_the_reference(expert, cases, trajectories):
    best = expert.best_actions(trajectories)
    for row, (prefix, reference) in enumerate(cases):
        for step in range(3):
            optimal = optimal_by_brute_force(prefix[:step], reference)
            distances = [edits(prefix[:step], reference[:j]) for j in range(len(reference) + 1)]
            index = distances.index(min(distances))
            assert best[row, step] == (*reference, SPECIAL.end)[index]
            assert best[row, step].item() in optimal


def test_longer_texts_equal_brute_force():
    references = [(3, 4, 4, 5), (5, 3, 3), (4, 4, 4, 4), ()]
    prefixes = [(3, 5, 4), (3, 3, 5), (4, 3, 5), (5, 5, 5)]
    actions = padded([(*prefix, SPECIAL.end) for prefix in prefixes], 4)
    trajectories = trajectories_of(actions, padded([(*row, SPECIAL.end) for row in references], 6))
    logits = DynamicOracle(Examples(trajectories.source, trajectories.reference), 6).logits(
        trajectories
    )
    for row in range(4):
        for step in range(4):
            found = set((logits[row, step] > 0).nonzero().squeeze(1).tolist())
            assert found == optimal_by_brute_force(prefixes[row][:step], references[row])


def test_the_most_probable_action_is_the_best_one(expert, trajectories):
    logits = expert.logits(trajectories)
    chosen = next_action(logits.flatten(0, 1)).view(logits.shape[:2])
    assert torch.equal(chosen, expert.best_actions(trajectories))


def test_distributions_are_uniform_over_optimal_actions(expert, trajectories):
    logits = expert.logits(trajectories)
    optimal = logits > 0
    uniform = optimal / optimal.sum(-1, keepdim=True)
    torch.testing.assert_close(logits.softmax(-1), uniform, atol=5e-4, rtol=0)
    assert logits.isfinite().all()


def test_without_mistakes_the_reference_is_best():
    references = padded([(3, 4, 5, 3, 2), (5, 2)], 5)
    trajectories = trajectories_of(references, references)
    best = DynamicOracle(Examples(trajectories.source, references), 6).best_actions(trajectories)
    assert torch.equal(best[trajectories.mask], references[trajectories.mask])


@pytest.mark.parametrize("ended", [True, False])
def test_references_need_no_end_token(ended):
    reference = padded([(3, 4, SPECIAL.end) if ended else (3, 4)], 3 if ended else 2)
    trajectories = trajectories_of(torch.tensor([[3, 4, 3]]), reference)
    best = DynamicOracle(Examples(trajectories.source, reference), 6).best_actions(trajectories)
    assert best.tolist() == [[3, 4, SPECIAL.end]]


def test_padding_of_references_has_no_effect(expert, trajectories):
    wide = torch.nn.functional.pad(trajectories.reference, (0, 5))
    wider = trajectories_of(trajectories.actions, wide)
    assert torch.equal(expert.logits(wider), expert.logits(trajectories))


def test_steps_give_the_labels_of_the_trajectories(expert, trajectories):
    expected, mask = expert.logits(trajectories), trajectories.mask
    rows = len(trajectories)
    state = dynamics.initial(trajectories.source, 3, SPECIAL)
    previous, cache = torch.full((rows,), SPECIAL.start), expert.start(trajectories.source, 3)
    for step in range(3):
        logits, cache = expert.step(state, previous, cache)
        assert torch.equal(logits, expected[:, step])
        previous = trajectories.actions[:, step]
        state = dynamics.transition(state, previous, SPECIAL)
    assert expert.queries.tokens == 2 * int(mask.sum())
    assert expert.queries.forwards == 1 + 3


def test_a_step_does_not_wait_for_the_device(expert, trajectories):
    """Reading the value of a meta tensor would raise; only `start` looks up sources."""
    cache = expert.start(trajectories.source, 3)
    on_meta = ReferenceCache(cache.reference.to("meta"), cache.distance.to("meta"))
    source = trajectories.source.to("meta")
    state = dynamics.initial(source, 3, SPECIAL)
    assert expert.step(state, source[:, 0], on_meta)[0].is_meta
    assert expert.logits(trajectories.to("meta")).is_meta


def test_a_refilled_row_has_a_new_reference(expert, trajectories):
    """After one step, every second row is reset to the first step of another example."""
    source = trajectories.source
    rows, other = torch.arange(len(source)), torch.arange(len(source)).flip(0)
    state, start = dynamics.initial(source, 3, SPECIAL), torch.full((len(source),), SPECIAL.start)
    _, cache = expert.step(state, start, expert.start(source, 3))
    state = dynamics.transition(state, trajectories.actions[:, 0], SPECIAL)
    mask, fresh = rows % 2 == 0, dynamics.initial(source[other], 3, SPECIAL)
    cache = cache.reset_rows(mask, expert.start(source[other], 3), torch.arange(len(mask)))
    state = dynamics.replace_rows(state, mask, fresh)
    logits, cache = expert.step(state, trajectories.actions[:, 0], cache)
    expected = expert.logits(trajectories)
    assert torch.equal(logits, expected[other, 0].where(mask[:, None], expected[:, 1]))
    chosen = torch.tensor([4, 4, 1])
    picked = cache.select_rows(chosen)
    assert torch.equal(picked.distance, cache.distance[chosen])
    assert torch.equal(picked.reference, cache.reference[chosen])


def test_an_unknown_source_raises_an_error_with_the_remedy(expert):
    with pytest.raises(ExpertError, match=r"got tokens \(5, 5, 2\): make it from the env"):
        expert.start(torch.tensor([[5, 5, 2, 0]]), 3)


def test_sources_are_found_whatever_their_padding(expert, trajectories):
    wide = torch.nn.functional.pad(trajectories.source, (0, 4))
    assert torch.equal(expert.start(wide, 3).reference, expert.start(wide[:, :1], 3).reference)


def test_of_equal_sources_the_first_counts():
    examples = Examples(torch.tensor([[3, 2], [3, 2]]), torch.tensor([[4, 2], [5, 2]]))
    cache = DynamicOracle(examples, 6).start(torch.tensor([[3, 2]]), 3)
    assert cache.reference.tolist() == [[4, 2, 0]]


def test_write_returns_the_references(expert):
    examples = Examples(torch.tensor([[9, 2], [8, 2]]), torch.tensor([[4, 3, 2], [5, 2, 0]]))
    written = expert.write(examples, max_steps=2, beam_size=5)
    assert written.reference.tolist() == [[4, 3], [5, 2]]
    assert expert.queries.tokens == 4
    assert expert.queries.forwards == 1


def test_each_query_is_counted_once(expert, trajectories):
    for ask in (expert.best_actions, expert.logits, partial(expert.top_k, k=2)):
        before = expert.queries
        ask(trajectories)
        assert expert.queries.tokens - before.tokens == int(trajectories.mask.sum())
        assert expert.queries.forwards - before.forwards == 1


def test_the_vocabulary_is_known(expert):
    assert expert.vocab_size == 6
