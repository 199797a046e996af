import dataclasses

import pytest
import torch

from textgen_env.types import (
    Examples,
    ShapeError,
    SpecialTokens,
    Trajectories,
    Writer,
    check_shape,
    tensors,
)

SPECIAL = SpecialTokens()
EXAMPLES = Examples(
    source=torch.tensor([[5, 2, 0, 0], [5, 6, 2, 0]]),
    reference=torch.tensor([[7, 8, 2, 0, 0], [7, 2, 0, 0, 0]]),
)


@pytest.mark.parametrize("shape", [(2, 3), (None, 3), (2, None), (None, None)])
def test_a_shape_that_fits_passes(shape):
    check_shape("rows", torch.zeros(2, 3), shape)


@pytest.mark.parametrize("shape", [(3, 2), (2,), (2, 3, None), (None, 4), ()])
def test_a_shape_that_does_not_fit_is_named(shape):
    with pytest.raises(ShapeError, match=r"rows must have shape \(.*\), got \(2, 3\)"):
        check_shape("rows", torch.zeros(2, 3), shape)


def test_any_size_is_called_any():
    with pytest.raises(ShapeError, match=r"\(any, 4\)"):
        check_shape("rows", torch.zeros(2, 3), (None, 4))


def test_examples_need_a_reference_for_each_source():
    with pytest.raises(ShapeError, match="reference"):
        Examples(EXAMPLES.source, EXAMPLES.reference[:1])


def test_examples_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EXAMPLES.source = EXAMPLES.reference


def test_select_keeps_the_order_asked_for():
    chosen = EXAMPLES.select(torch.tensor([1, 0, 1]))
    assert len(chosen) == 3
    assert chosen.source[0].tolist() == [5, 6, 2, 0]
    assert chosen.reference[1].tolist() == [7, 8, 2, 0, 0]


def test_trimmed_cuts_padding_of_all_rows_only():
    trimmed = EXAMPLES.trimmed(SPECIAL)
    assert trimmed.source.tolist() == [[5, 2, 0], [5, 6, 2]]
    assert trimmed.reference.tolist() == [[7, 8, 2], [7, 2, 0]]


def test_trajectories_of_examples_count_the_end_and_no_padding():
    data = Trajectories.from_examples(EXAMPLES, SPECIAL)
    assert (data.writer == Writer.DATA).all()
    assert data.mask.sum(1).tolist() == [3, 2]
    assert torch.equal(data.actions, EXAMPLES.reference)


def test_selected_rows_are_trimmed_and_keep_fields_together():
    every = Trajectories.from_examples(EXAMPLES, SPECIAL)
    row = every.select(torch.tensor([1])).trimmed(SPECIAL)
    assert len(row) == 1
    assert row.source.tolist() == [[5, 6, 2]]
    assert row.actions.tolist() == row.reference.tolist() == [[7, 2]]
    assert row.mask.tolist() == [[True, True]]


TWO_VIEWS = dataclasses.replace(
    EXAMPLES, expert_source=torch.tensor([[3, 4, 4, 4, 2, 0], [3, 2, 0, 0, 0, 0]])
)
RECORDS = [TWO_VIEWS, Trajectories.from_examples(TWO_VIEWS, SPECIAL)]


@pytest.mark.parametrize("record", RECORDS)
def test_the_experts_view_goes_along_and_has_a_width_of_its_own(record):
    assert torch.equal(record.expert_view, TWO_VIEWS.expert_view)
    row = record.select(torch.tensor([1, 0]))
    assert row.expert_view[0].tolist() == [3, 2, 0, 0, 0, 0]
    cut = row.trimmed(SPECIAL)
    assert cut.expert_view.tolist() == [[3, 2, 0, 0, 0], [3, 4, 4, 4, 2]]
    assert cut.source.shape == (2, 3)
    assert record.to("meta").expert_view.shape == (2, 6)
    assert tensors(record)["expert_source"] is record.expert_view


@pytest.mark.parametrize("record", [EXAMPLES, Trajectories.from_examples(EXAMPLES, SPECIAL)])
def test_without_one_the_expert_reads_the_source_which_is_kept_once(record):
    changed = [record, record.select(torch.tensor([1])), record.trimmed(SPECIAL), record.to("meta")]
    for each in changed:
        assert each.expert_view is each.source
        assert "expert_source" not in tensors(each)
    assert dataclasses.replace(record).expert_view is record.source


@pytest.mark.parametrize("record", [EXAMPLES, Trajectories.from_examples(EXAMPLES, SPECIAL)])
def test_where_the_source_is_replaced_the_expert_reads_the_new_one(record):
    changed = dataclasses.replace(record, source=record.source + 1)
    assert changed.expert_view is changed.source


def test_examples_need_an_experts_source_for_each_source():
    with pytest.raises(ShapeError, match=r"expert_source must have shape \(2, any\), got \(1, 6\)"):
        dataclasses.replace(EXAMPLES, expert_source=TWO_VIEWS.expert_view[:1])


def test_rows_of_several_records_are_stacked_to_the_widest():
    wide = Trajectories.from_examples(EXAMPLES, SPECIAL)
    one = dataclasses.replace(
        wide.select(torch.tensor([1])).trimmed(SPECIAL),
        writer=torch.full((1, 2), Writer.STUDENT),
        reference=torch.tensor([[9, 9, 9, 9, 9, 9, 2]]),
    )
    both = Trajectories.cat([one, wide], SPECIAL)
    assert both.source.tolist() == [[5, 6, 2, 0], *EXAMPLES.source.tolist()]
    assert both.actions.tolist() == [[7, 2, 0, 0, 0], *EXAMPLES.reference.tolist()]
    assert both.writer.tolist() == [[1, 1, 0, 0, 0], [0] * 5, [0] * 5]
    assert both.mask.sum(1).tolist() == [2, 3, 2]
    assert both.reference.shape == (3, 7)
    assert both.reference[0].tolist() == [9, 9, 9, 9, 9, 9, 2]
    assert both.reference[2].tolist() == [7, 2, 0, 0, 0, 0, 0]
    back = both.select(torch.tensor([0])).trimmed(SPECIAL)
    assert all(torch.equal(tensors(back)[name], tensor) for name, tensor in tensors(one).items())


def test_stacked_rows_have_one_view_if_all_of_them_have():
    one, two = (Trajectories.from_examples(e, SPECIAL) for e in (EXAMPLES, TWO_VIEWS))
    both = Trajectories.cat([one, one], SPECIAL)
    assert both.expert_view is both.source
    mixed = Trajectories.cat([one, two], SPECIAL)
    views = [*one.expert_view.tolist(), *two.expert_view.tolist()]
    unpadded = [[token for token in row if token] for row in mixed.expert_view.tolist()]
    assert unpadded == [[token for token in row if token] for row in views]


def test_padding_is_the_records_own_not_0():
    special = SpecialTokens(pad=8, start=1, end=2)
    narrow = Examples(torch.tensor([[5, 2]]), torch.tensor([[7, 2]]))
    wide = Examples(torch.tensor([[5, 6, 2]]), torch.tensor([[7, 7, 2]]))
    parts = [Trajectories.from_examples(part, special) for part in (narrow, wide)]
    both = Trajectories.cat(parts, special)
    assert both.source[0].tolist() == [5, 2, 8]
    assert both.actions[0].tolist() == both.reference[0].tolist() == [7, 2, 8]
    assert both.mask[0].tolist() == [True, True, False]


@pytest.mark.parametrize(
    "field", ["source", "actions", "writer", "mask", "reference", "expert_source"]
)
def test_trajectories_name_the_field_of_another_shape(field):
    data = Trajectories.from_examples(EXAMPLES, SPECIAL)
    broken = {field: torch.zeros(5, 2, 2, dtype=torch.int64)}
    with pytest.raises(ShapeError, match=f"^{field}|^actions"):
        dataclasses.replace(data, **broken)


def test_a_mask_must_be_bool():
    data = Trajectories.from_examples(EXAMPLES, SPECIAL)
    with pytest.raises(ShapeError, match=r"mask must be bool, got torch\.int64"):
        dataclasses.replace(data, mask=data.mask.long())


def test_records_move_with_all_their_fields():
    moved = Trajectories.from_examples(EXAMPLES, SPECIAL).to("meta")
    assert {tensor.device.type for tensor in tensors(moved).values()} == {"meta"}
    assert EXAMPLES.to("meta").source.device.type == "meta"


DRAWN = dataclasses.replace(
    RECORDS[1], behavior_log_prob=torch.tensor([[-1.0, -2, -3, 0, 0], [-4.0, -5, 0, 0, 0]])
)


def test_log_probabilities_of_draws_go_along_with_their_actions():
    row = DRAWN.select(torch.tensor([1])).trimmed(SPECIAL)
    assert row.behavior_log_prob.tolist() == [[-4, -5]]
    assert DRAWN.to("meta").behavior_log_prob.shape == (2, 5)
    assert RECORDS[1].behavior_log_prob is None
    assert RECORDS[1].action_log_prob.eq(0).all(), "the data is certain of what it writes"


def test_what_was_not_drawn_is_stacked_as_certain():
    special = SpecialTokens(pad=8, start=1, end=2)
    short = RECORDS[1].select(torch.tensor([1])).trimmed(SPECIAL)
    both = Trajectories.cat([short, DRAWN], special)
    assert both.behavior_log_prob.tolist() == [[0.0] * 5, *DRAWN.behavior_log_prob.tolist()]
    assert Trajectories.cat([short, short], special).behavior_log_prob is None


def test_log_probabilities_have_the_shape_of_the_actions():
    with pytest.raises(ShapeError, match=r"behavior_log_prob must have shape \(2, 5\)"):
        dataclasses.replace(DRAWN, behavior_log_prob=torch.zeros(2, 4))
