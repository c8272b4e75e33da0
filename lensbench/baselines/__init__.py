"""What rival explanations do: each function destroys one source of information, or reads another in its place.

A function takes a method at work on a bench and returns outcomes. Rivals that change the evidence use the method's
own fits. The modules are the questions: `activation`, `text`, `specific`, `diagnostics`.
"""

from lensbench.baselines.activation import (
    choices_only,
    derangement,
    draw_like,
    gaussian,
    gaussian_like,
    majority,
    mean_activation,
    question_only,
    shuffled,
)
from lensbench.baselines.common import Outcome, Rival
from lensbench.baselines.diagnostics import before_subject, control_task, skip_ahead, splice, wrong_position
from lensbench.baselines.target import reference_reader, twin, unplanted
from lensbench.baselines.text import (
    asked_in_text,
    embedding,
    input_classifier,
    input_only,
    inversion,
    random_model,
    verbalizer_probe,
)
from lensbench.models.edit_folders import facts_about

__all__ = [
    "FUNCTIONS",
    "Outcome",
    "Rival",
    "before_subject",
    "derangement",
    "draw_like",
    "facts_about",
    "gaussian_like",
]

FUNCTIONS: dict[str, Rival] = {
    function.__name__: function
    for function in (
        question_only,
        mean_activation,
        shuffled,
        gaussian,
        choices_only,
        majority,
        embedding,
        input_only,
        inversion,
        asked_in_text,
        input_classifier,
        random_model,
        verbalizer_probe,
        unplanted,
        twin,
        reference_reader,
        control_task,
        splice,
        wrong_position,
        skip_ahead,
    )
}
