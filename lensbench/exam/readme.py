"""What a paper says to whoever sits the exam."""

from collections.abc import Mapping
from typing import Any

SCRIPT = """\
import json
import numpy as np
import pyarrow as pa, pyarrow.parquet as pq

def read(folder):
    raw = open(f"{folder}/evidence.safetensors", "rb").read()
    size = int.from_bytes(raw[:8], "little")
    shape = json.loads(raw[8 : 8 + size])["activations"]["shape"]
    activations = np.frombuffer(raw[8 + size :], "<f4").reshape(shape)
    return pq.read_table(f"{folder}/rows.parquet").to_pylist(), activations

def answer(row, activation):  # your method: a log-score for each of row["answers"]
    return [0.0 for _ in row["answers"]]

rows, activations = read(".")
scores = [answer(row, activation) for row, activation in zip(rows, activations)]
pq.write_table(pa.table({"row": [row["row"] for row in rows], "log_scores": scores}), "answers.parquet")
"""

_LEARN = """
## Learning

`training/` holds labelled activations in the same form: `training` names a set, `label` is the right answer, and rows
of one `group` are about one subject. No subject of the training sets is asked about. Each row of `rows.parquet` names
the set to learn from before it is answered. Several sets answer one question: learn from each on its own, in the same
way, and say nothing of one that you know from another.
"""


def readme(about: Mapping[str, Any], width: int) -> str:
    """Write the README of a paper.

    Args:
        about: what `exam.toml` says.
        width: how many numbers an activation has.
    """
    edited = " Its weights may have been edited; the edited model is not handed out." if about["edited"] else ""
    text = (
        "`source` is the text that was run, and `subject` what the question is about.\n\n"
        if "text" in about["reads"]
        else ""
    )
    return f"""\
# Exam {about["exam"]}

{about["rows"]:,} activations of a language model, {width} numbers each, and a question about each of them. A method
answers every row; whoever made the exam grades the answers. Nobody else knows which rows are activations of the model
at the place that is asked about, and which are decoys.

- `rows.parquet`: one row for each question. `row` is its name, `sheet` the sheet of paper that it stands on, `layer`
  the layer, `site` the token that was read,
  `question` the question with its slot `{{subject}}` unfilled, `forms` the same in other words, `answers` every
  possible answer, `choices` those that count for this row.
- `evidence.safetensors`: the tensor `activations`, float32, in the order of `rows.parquet`.
- `exam.toml`: the model and the conventions.

The model is {about["model"]}.{edited} {about["layer_convention"]}
A method may read: {", ".join(about["reads"])}. {text}Rows are to be answered one by one, and nothing on one sheet
may depend on another: some rows stand in the paper twice, and their answers are compared.

## Answers

A Parquet file with the column `row` and one of these:

- `log_scores`: a list of numbers in the order of the row's `answers`; higher is more likely, `-inf` is impossible;
- `answer`: one of the row's `choices`;
- `text`: any text; it counts as the choice that it names first.

A method that makes several attempts gives each its own rows, named in the column `attempt`. A card beside the
answers says what the method is, `answers.card.toml` beside `answers.parquet`:

```toml
name = "my_method"
summary = "What it does, in a sentence."
version = "1"
reads = ["activation", "question"]   # what it reads
learns_from = "nothing"              # nothing, corpus or labels
attempts = ["default"]               # what stands in the column `attempt`; the first one counts
```
{_LEARN if about["training"] else ""}
## A script that sits the exam

With numpy and pyarrow alone, run in this folder:

```python
{SCRIPT}```
"""
