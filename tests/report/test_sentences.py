"""What is said of a method in one sentence is what its verdicts are, and no more."""

import pytest

from lensbench.report.sentences import claim


def row(activation: str | None = "uses the activation", text: str | None = None, held: str = "", beats: str = "",
        verbalizer: str = "m") -> dict[str, object]:  # fmt: skip
    found: dict[str, object] = {"inspector": "my_lens", "model": "m", "verbalizer": verbalizer, "subjects": 40}
    for question, verdict, where in (("uses_activation", activation, held), ("beats_text", text, beats)):
        if verdict is not None:
            found |= {f"{question}_verdict": verdict, f"{question}_holds": where, f"{question}_baseline": "input_only"}
    return found


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (row(held="8-10, 12"), "My lens uses the activation at layers 8-10, 12."),
        (row(held="5"), "My lens uses the activation at layer 5."),
        (row("inconclusive"), "40 subjects do not tell whether my lens uses the activation."),
        (row("beaten by mean"), "One mean activation for all items does better."),
        (row("incomplete without shuffled"), "Incomplete without shuffled."),
        (row("no verdict (chosen items)"), "No verdict (chosen items)."),
        (row(None), "Whether my lens uses the activation was not asked."),
        (
            row(held="1-3", text="inconclusive"),
            "My lens uses the activation at layers 1-3; at its best layer, 40 subjects do not tell whether it beats "
            "the model given only the name.",
        ),
        (
            row(held="1-3", text="beaten by input_only", verbalizer="other"),
            "My lens uses the activation at layers 1-3; at its best layer, the verbalizer given only the name does "
            "better.",
        ),
        (
            row(held="1-3", text="within .10 of input_classifier"),
            "My lens uses the activation at layers 1-3; at its best layer, a classifier of the spelling does as well.",
        ),
        (
            row(held="1-3", text="inconclusive", beats="2"),
            "My lens uses the activation at layers 1-3, and beats the text baselines at layer 2.",
        ),
    ],
)  # fmt: skip
def test_a_claim_says_what_the_verdicts_say(said: dict[str, object], expected: str) -> None:
    assert claim(said) == expected
