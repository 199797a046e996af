"""Contract of `SequenceModel` tested on every family of pretrained models."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from tests.support.pretrained import FAMILIES, SHARED_POSITIONS, SLIDING, TEXTS, save_family
from textgen_env.experts.expert import NeuralExpert
from textgen_env.generation.beam_search import beam_search
from textgen_env.generation.decoding import greedy, sample
from textgen_env.generation.open_batch import OpenBatch, OpenText
from textgen_env.generation.sampling import Sampling
from textgen_env.models import cache_ops
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tasks.task import encode_sources
from textgen_env.types import Examples, Trajectories

STEPS = 6
TARGET_LENGTHS = (4, 6, 1, 5, 3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Save a random model of each family, and return the folders."""
    root = tmp_path_factory.mktemp("families")
    return {name: save_family(family, root / name) for name, family in FAMILIES.items()}


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request, folders):
    """Return the name of a family, its model and its tokenizer."""
    model, tokenizer = load_model(folders[request.param]), load_tokenizer(folders[request.param])
    assert tokenizer.decode(tokenizer.encode(TEXTS)) == TEXTS
    return request.param, model, tokenizer


@pytest.fixture
def model(loaded):
    return loaded[1]


@pytest.fixture
def source(loaded):
    return encode_sources(TEXTS, loaded[2])


@pytest.fixture
def actions(model):
    return texts_of(model, TARGET_LENGTHS, seed=1)


def texts_of(model, lengths, seed):
    """Draw random rows of pieces that are words in every family, with the end token last."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 25, (len(lengths), max(lengths)), generator=generator)
    for row, length in zip(tokens, lengths, strict=True):
        row[length - 1], row[length:] = model.special.end, model.special.pad
    return tokens


def steps(model, cache, actions, previous=None):
    """Return the logits (B, T, V) of stepping through `actions`, and the cache afterwards."""
    previous = torch.full_like(actions[:, 0], model.special.start) if previous is None else previous
    logits = []
    for action in actions.unbind(1):
        step_logits, cache = model.step(previous, cache)
        logits.append(step_logits)
        previous = action
    return torch.stack(logits, dim=1), cache


def assert_near(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def alive(model, actions):
    """Return a (B, T) bool mask of each text up to its end, after which logits have no meaning."""
    return actions != model.special.pad


@torch.no_grad()
def test_steps_give_the_logits_of_the_whole_sequence(model, source, actions):
    logits, _ = steps(model, model.start(source, STEPS), actions)
    assert logits.shape == (*actions.shape, model.vocab_size)
    assert logits.std() > 0.1  # the comparison below needs logits that vary
    counted = alive(model, actions)
    assert_near(logits[counted], model.sequence_logits(source, actions)[counted])


@torch.no_grad()
def test_steps_give_the_logits_of_the_whole_sequence_in_bfloat16(model, source, actions):
    model = copy.deepcopy(model).to(torch.bfloat16)
    logits, _ = steps(model, model.start(source, STEPS), actions)
    whole = model.sequence_logits(source, actions)
    assert logits.dtype == whole.dtype == torch.bfloat16
    counted = alive(model, actions)
    difference = (logits - whole)[counted].float()
    assert difference.norm() < 0.1 * whole[counted].float().norm()


@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbors_or_on_padding(model, source, actions):
    wide = F.pad(source, (0, 3), value=model.special.pad)
    together = model.sequence_logits(wide, F.pad(actions, (0, 2), value=model.special.pad))
    for row, written in enumerate(TARGET_LENGTHS):
        read = int((source[row] != model.special.pad).sum())
        alone = model.sequence_logits(source[row, None, :read], actions[row, None, :written])
        assert_near(alone[0], together[row, :written])


@torch.no_grad()
def test_logits_are_those_of_the_model_itself(loaded, folders):
    """Compare from text to logits: source, decoder prompt and vocabulary."""
    name, model, tokenizer = loaded
    target = "w1 w2 w3"
    own = AutoTokenizer.from_pretrained(folders[name])
    tokens = torch.tensor(own(target, add_special_tokens=False)["input_ids"])
    written = torch.cat([tokens, tokens.new_tensor([own.eos_token_id])])[None]
    ours = model.sequence_logits(encode_sources(TEXTS[:1], tokenizer), written)
    read = own(TEXTS[:1], return_tensors="pt")
    if name in ("marian", "t5", "bart"):
        inner = AutoModelForSeq2SeqLM.from_pretrained(folders[name]).eval()
        prompt = {"marian": [inner.config.pad_token_id], "t5": [0], "bart": [2, 0]}[name]
        before = torch.tensor([[*prompt, *tokens.tolist()]])
        theirs = inner(**read, decoder_input_ids=before).logits[:, len(prompt) - 1 :]
    else:
        inner = AutoModelForCausalLM.from_pretrained(folders[name]).eval()
        whole = torch.cat([read["input_ids"], tokens[None]], 1)
        theirs = inner(whole).logits[:, -len(tokens) - 1 :]
    known = len(own)  # the rest of a padded vocabulary is cut off
    assert_near(ours[..., :known], theirs[..., :known])
    assert model.vocab_size == known + (name in ("llama", "gpt2"))
    if model.vocab_size > known:  # a made-up padding token is practically impossible
        assert ours.softmax(-1)[..., -1].max() < 1e-12


@torch.no_grad()
def test_the_embedding_of_padding_influences_nothing(model, source, actions):
    before = model.sequence_logits(source, actions)
    changed = copy.deepcopy(model)
    embeddings = {id(e): e for e in changed.modules() if isinstance(e, torch.nn.Embedding)}
    pieces = [e for e in embeddings.values() if e.num_embeddings >= model.vocab_size]
    seen = [*dict.fromkeys(e.weight for e in pieces)]
    assert seen
    if model.special.pad in getattr(model, "decoder_prompt", ()):
        pytest.skip("the decoder's prompt is the padding token")
    for weight in seen:
        weight[model.special.pad] += 10
    after = changed.sequence_logits(source, actions)
    others = torch.arange(model.vocab_size) != model.special.pad
    counted = alive(model, actions)
    assert_near(after[counted][:, others], before[counted][:, others])


@torch.no_grad()
def test_selecting_rows_then_stepping_is_stepping_then_selecting(model, source):
    index, actions = torch.tensor([3, 3, 0, 4, 1, 1, 2]), texts_of(model, (STEPS,) * 5, seed=1)
    _, cache = steps(model, model.start(source, STEPS), actions[:, :3])
    selected, previous = cache.select_rows(index), torch.full_like(source[:, 0], 7)
    first, _ = steps(model, selected, actions[index, 3:], previous[index])
    second, _ = steps(model, cache, actions[:, 3:], previous)
    assert_near(first, second[index])


@torch.no_grad()
def test_repeated_and_reordered_rows_are_selected_rows(model, source):
    twice = texts_of(model, (STEPS,) * 5, seed=1).repeat_interleave(2, 0)
    twice[::2] = twice[::2].roll(1, 1)
    _, cache = steps(model, model.start(source, STEPS).repeat_rows(2), twice[:, :2])
    index = torch.tensor([1, 0, 3, 3, 4, 5, 7, 6, 8, 8])
    got, _ = steps(model, cache.reorder_rows(index), twice[index, 3:], twice[index, 2])
    expected, _ = steps(model, cache.select_rows(index), twice[index, 3:], twice[index, 2])
    assert_near(got, expected)


@pytest.fixture(params=[True, False], ids=["host sync is free", "host sync is avoided"])
def host_sync(request, monkeypatch):
    """Set whether caches may read masks on the host when they scatter rows."""
    monkeypatch.setattr(cache_ops, "host_sync_is_free", lambda device: request.param)


@torch.no_grad()
@pytest.mark.usefixtures("host_sync")
@pytest.mark.parametrize("ahead", [0, 2])
def test_reset_rows_start_over_and_the_others_continue(model, source, ahead):
    actions = texts_of(model, (STEPS,) * 5, seed=1)
    mask, index = torch.tensor([True, False, False, True, False]), torch.tensor([2, 0, 0, 3, 0])
    others, texts = source.flip(0), texts_of(model, (4,) * 5, seed=3)
    previous = F.pad(texts, (1, 0), value=model.special.start)
    fresh = model.start(others, STEPS)
    for step in range(ahead):
        _, fresh = model.step(previous[:, step], fresh)
    _, cache = steps(model, model.start(source, STEPS), actions[:, :3])
    cache = cache.reset_rows(mask, fresh, index)
    got = []
    for step in range(2):
        mixed = previous[index, ahead + step].where(mask, actions[:, 2 + step])
        logits, cache = model.step(mixed, cache)
        got.append(logits)
    reset = model.sequence_logits(others[index], texts[index])[:, ahead : ahead + 2]
    expected = reset.where(mask[:, None, None], model.sequence_logits(source, actions)[:, 3:5])
    assert_near(torch.stack(got, dim=1), expected)


@torch.no_grad()
@pytest.mark.usefixtures("host_sync")
def test_rows_are_reset_with_narrower_sources(model, source):
    read = (source != model.special.pad).sum(1)
    short = source[read.argsort()[:2]]
    short = short[:, : int((short != model.special.pad).sum(1).max())]
    assert short.shape[1] < source.shape[1], "the texts differ in length"
    actions, texts = texts_of(model, (STEPS,) * 5, seed=1), texts_of(model, (3, 3), seed=3)
    mask, index = torch.arange(5) % 2 == 0, torch.tensor([1, 0, 0, 0, 1])
    _, cache = steps(model, model.start(source, STEPS), actions[:, :3])
    cache = cache.reset_rows(mask, model.start(short, STEPS), index)
    start = torch.full_like(mask, model.special.start, dtype=torch.int64)
    first, _ = model.step(start.where(mask, actions[:, 2]), cache)
    reset = model.sequence_logits(short[index], texts[index])[:, 0]
    expected = reset.where(mask[:, None], model.sequence_logits(source, actions)[:, 3])
    assert_near(first, expected)


@torch.no_grad()
def test_longer_texts_join_shorter_ones_that_are_being_written(model, source):
    lengths = [3, 9, 2, 7, 9]
    rows = [texts_of(model, [length], seed=length)[0] for length in lengths]
    texts = [OpenText(row, STEPS) for row in rows]
    batch = OpenBatch(model, 3, STEPS)
    waiting = list(texts)
    while waiting or batch.texts:
        if waiting and batch.room:
            batch.join([waiting.pop(0)])
        batch.step()
    for text in texts:
        (alone,) = greedy(model, text.source[None], STEPS).tolist()
        assert text.tokens == alone[: len(text.tokens)]
        assert len(text.tokens) == STEPS or text.tokens[-1] == model.special.end


def test_rows_are_reset_forever_in_bounded_memory(model, source):
    """Reset one row at every step, for longer than any text, and compare each row with it alone."""
    actions = texts_of(model, (STEPS,) * 5, seed=1)
    same, cache = torch.arange(5), model.start(source, STEPS)
    age, previous = torch.zeros_like(same), torch.full_like(same, model.special.start)
    expected = model.sequence_logits(source, actions)
    for step in range(80):
        logits, cache = model.step(previous, cache)
        assert_near(logits, expected[same, age])
        mask = same == step % 5
        previous = actions[same, age].masked_fill(mask, model.special.start)
        age = (age + 1).masked_fill(mask, 0)
        cache = cache.reset_rows(mask, model.start(source, STEPS), same)
    assert cache.visible.shape[1] <= cache.max_slots + 16


@torch.no_grad()
def test_a_row_at_the_limit_may_be_stepped_until_it_is_reset(model, source, actions):
    expected, _ = steps(model, model.start(source, 2), actions[:, :2])
    cache = model.start(source, 2)
    for _ in range(60):  # beyond all positions of the models
        _, cache = model.step(actions[:, 0], cache)
    everywhere, same = torch.ones(len(source), dtype=torch.bool), torch.arange(len(source))
    cache = cache.reset_rows(everywhere, model.start(source, 2), same)
    got, _ = steps(model, cache, actions[:, :2])
    counted = alive(model, actions[:, :2])
    assert_near(got[counted], expected[counted])


def generated(name, folder, *, endless=False, **options):
    """Return the ids that `generate` writes for TEXTS, without the prompt, up to their end."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder_decoder = name in ("marian", "t5", "bart")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right" if encoder_decoder else "left"
    auto = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    inner = auto.from_pretrained(folder).eval()
    inner.generation_config.pad_token_id = tokenizer.pad_token_id
    inner.resize_token_embeddings(len(tokenizer), mean_resizing=False)  # no padded vocabulary
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True, return_token_type_ids=False)
    suppressed = set()
    if tokenizer.pad_token not in (tokenizer.eos_token, tokenizer.unk_token):
        suppressed.add(tokenizer.pad_token_id)
    if endless:
        suppressed.add(tokenizer.eos_token_id)
    prompt_length = {"marian": 1, "t5": 1, "bart": 2}.get(name) or batch["input_ids"].shape[1]
    rows = inner.generate(
        **batch,
        max_new_tokens=STEPS + (name == "bart"),  # the forced token counts
        do_sample=False,
        **({"suppress_tokens": sorted(suppressed)} if suppressed else {}),
        **options,
    )[:, prompt_length:].tolist()
    end = tokenizer.eos_token_id
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def cut(tokens, special):
    """Return rows of ids without their padding."""
    return [[token for token in row if token != special.pad] for row in tokens.tolist()]


def test_greedy_writes_what_generate_writes(loaded, folders, source):
    name, model, _ = loaded
    ours = cut(greedy(model, source, STEPS), model.special)
    assert ours == generated(name, folders[name], num_beams=1)
    assert len({tuple(row) for row in ours}) > 1


class Endless:
    """Model that cannot end its text; as in `generate`, other tokens stay as probable as before."""

    def __init__(self, model):
        self.model, self.special, self.vocab_size = model, model.special, model.vocab_size
        self.start = model.start

    def step(self, previous, cache):
        logits, cache = self.model.step(previous, cache)
        pad, _, end = self.special
        logits[:, pad] = torch.logaddexp(logits[:, pad], logits[:, end])
        return logits.index_fill(1, torch.tensor([end]), -1e4), cache


def test_beam_search_writes_what_generate_writes_where_no_text_ends(loaded, folders, source):
    """Compare beam searches in which no hypothesis ends; docs/huggingface.md has the other case."""
    name, model, _ = loaded
    best, _ = beam_search(Endless(model), source, STEPS, beam_size=3)
    ours = cut(best, model.special)
    assert ours == generated(name, folders[name], endless=True, num_beams=3)
    assert ours != cut(greedy(Endless(model), source, STEPS), model.special)


def test_sampling_repeats_under_a_seed(model, source):
    drawn = [
        sample(
            model,
            source,
            STEPS,
            sampling=Sampling(),
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_an_expert_labels_with_it_and_counts(model, source, actions):
    examples = Examples(source, actions)
    trajectories = Trajectories.from_examples(examples, model.special)
    expert = NeuralExpert(model)
    logits = expert.logits(trajectories)
    assert not logits.requires_grad
    assert expert.queries.forwards == 1
    assert expert.queries.tokens == sum(TARGET_LENGTHS)
    labels = expert.best_actions(trajectories)
    assert not (labels == model.special.pad)[trajectories.mask].any()
    written = expert.write(examples, max_steps=STEPS, beam_size=1).reference
    assert torch.equal(written, greedy(model, source, STEPS))
    assert expert.queries.tokens == 2 * sum(TARGET_LENGTHS) + (written != model.special.pad).sum()


def test_gradients_reach_every_weight_that_is_trained(model, source, actions):
    model = copy.deepcopy(model).train()
    losses = F.cross_entropy(
        model.sequence_logits(source, actions).flatten(0, 1), actions.flatten(), reduction="none"
    )
    losses[actions.flatten() != model.special.pad].mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:  # some families have sinusoids as parameters
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


def test_texts_longer_than_the_model_can_read_are_refused(loaded, source):
    name, model, _ = loaded
    if name == "t5":
        pytest.skip("T5 has distances and no limit of positions")
    with pytest.raises(ValueError, match=r"must have at most 48 tokens, .* model's limit, got"):
        model.start(source, 60)


@torch.no_grad()
def test_a_family_with_one_length_for_all_rows_refuses_resets(tmp_path):
    folder = save_family(SHARED_POSITIONS, tmp_path)
    model, source = load_model(folder), encode_sources(TEXTS, load_tokenizer(folder))
    actions = texts_of(model, TARGET_LENGTHS, seed=1)
    logits, cache = steps(model, model.start(source, STEPS), actions[:, :3])
    counted = alive(model, actions[:, :3])
    assert_near(logits[counted], model.sequence_logits(source, actions)[:, :3][counted])
    assert greedy(model, source, STEPS).shape == (5, STEPS)
    same = torch.arange(5)
    with pytest.raises(ValueError, match=r"rows must all begin together.* after 3 steps"):
        cache.reset_rows(same == 1, model.start(source, STEPS), same)


@torch.no_grad()
def test_windows_slide_with_the_text_and_not_with_the_slots(tmp_path):
    folder = save_family(SLIDING, tmp_path)
    model, source = load_model(folder), encode_sources(TEXTS, load_tokenizer(folder))
    actions, same = texts_of(model, (STEPS,) * 5, seed=1), torch.arange(5)
    expected = model.sequence_logits(source, actions)
    _, cache = steps(model, model.start(source, STEPS), actions[:, :4])
    cache = cache.reset_rows(same != 2, model.start(source, STEPS), same)
    first = torch.full_like(same, model.special.start).where(same != 2, actions[:, 3])
    logits, cache = model.step(first, cache)
    assert_near(logits, expected[:, 0].where((same != 2)[:, None], expected[:, 4]))
    got, _ = steps(model, cache, actions[:, 1:], actions[:, 0])
    assert_near(got[same != 2], expected[same != 2, 1:])


@torch.no_grad()
def test_it_is_loaded_in_float64_too(loaded, folders, model, source, actions):
    exact = load_model(folders[loaded[0]], torch.float64)
    logits = exact.sequence_logits(source, actions)
    assert logits.dtype == torch.float64
    assert_near(logits.float(), model.sequence_logits(source, actions))


@torch.no_grad()
def test_steps_give_the_same_by_fused_attention(loaded, folders, source, actions):
    model = load_model(folders[loaded[0]])
    model.model.set_attn_implementation("sdpa")  # the default on accelerators
    got, _ = steps(model, model.start(source, actions.shape[1]), actions)
    expected, counted = model.sequence_logits(source, actions), alive(model, actions)
    assert_near(got[counted], expected[counted])


@torch.no_grad()
def test_models_can_be_converted_to_another_dtype(model, source, actions):
    expected = model.sequence_logits(source, actions)
    converted = copy.deepcopy(model).to("cpu", torch.bfloat16)
    logits = converted.sequence_logits(source, actions)
    assert logits.dtype == torch.bfloat16
    counted = alive(model, actions)
    assert (logits.float() - expected)[counted].norm() < 0.1 * expected[counted].norm()
