"""Parts of a student that keep their weights, such as an encoder copied from its teacher."""

from collections.abc import Sequence

from textgen_env.models.storage import Model


def with_frozen_parts(student: Model, parts: Sequence[str]) -> Model:
    """Return `student`, of which `parts` are not trained from now on.

    No gradient is computed for what lies before all that is trained, so that an update is cheaper.

    Args:
        student: is changed in place.
        parts: names of modules in it, `encoder` or with dots `model.encoder`; none to train all.

    Raises:
        ValueError: it has no such part, or nothing is left to be trained.

    Source: the commands for distilBART's students, which have the teacher's encoder and embeddings
        and leave them as they are (huggingface/transformers, pull request 7599).
    """
    modules = dict(student.named_modules())
    for part in parts:
        if part not in modules or not part:
            children = ", ".join(name for name, _ in student.named_children())
            raise ValueError(
                f"frozen must name parts of the student, got {part!r}: they are {children}"
            )
        modules[part].requires_grad_(False)
    if parts and not any(weight.requires_grad for weight in student.parameters()):
        raise ValueError(
            f"frozen must leave a part to be trained, got {', '.join(parts)}: leave one out"
        )
    return student
