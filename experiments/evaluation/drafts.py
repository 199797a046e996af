"""Students as drafts of their teacher: the share of tokens that speculative decoding accepts."""

import torch

from textgen_env.generation.decoding import decode_all
from textgen_env.generation.speculative import DraftCounts, SpeculativeDecoder
from textgen_env.models.huggingface.model import HuggingFaceModel
from textgen_env.models.sequence_model import BlockModel
from textgen_env.tasks.task import encode
from textgen_env.tokenizers.subword import same_pieces
from textgen_experiments.evaluation.scores import EvaluatedModel
from textgen_experiments.evaluation.timing import SPEED_SENTENCES


def counts_as_draft(
    student: EvaluatedModel, teacher: EvaluatedModel, *, batch_size: int
) -> DraftCounts | None:
    """Return the counts of the teacher's greedy decoding with the student as its draft.

    Args:
        student: the draft.
        teacher: writes the texts of the first test pairs.
        batch_size: sentences decoded together.

    Returns:
        The counts; None where it cannot be one: their tokens or their views of the sources differ,
        the teacher reads one token at a time, or rows cannot go back each by itself.
    """
    test = encode(student.task.test[:SPEED_SENTENCES], student.task)
    same_view = torch.equal(test.source, test.expert_view)
    same_tokens = same_pieces(student.task.tokenizer, teacher.task.tokenizer)
    if not (same_view and same_tokens and isinstance(teacher.model, BlockModel)):
        return None
    for model in (student.model, teacher.model):
        if isinstance(model, HuggingFaceModel) and model.rows_move_together:
            return None
    decoder = SpeculativeDecoder(student.model)
    steps = student.task.max_target_length
    decode_all(teacher.model, test.source, steps, decoder=decoder, batch_size=batch_size)
    return decoder.counts
