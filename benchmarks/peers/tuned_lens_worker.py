"""Logit lens by the PredictionTrajectory of tuned-lens 0.2.0; run by benchmarks/logit_lens.py.

It runs in an environment of its own and must not import lensbench. A trajectory is made of one prompt, at all of its
positions and with the whole vocabulary. What the comparison needs of it, its last position's choices, is read off at
once, so that the trajectories of all prompts need not fit into memory together.
"""

import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from tuned_lens.nn.lenses import LogitLens
from tuned_lens.plotting import PredictionTrajectory
from worker import serve


def main() -> None:
    """Load the model and answer jobs."""
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    lens = LogitLens.from_model(model)

    def logit_lens(prompts, tokens):
        kept = []
        for prompt in prompts:
            trajectory = PredictionTrajectory.from_lens_and_model(lens, model, tokenizer(prompt)["input_ids"])
            kept.append(trajectory.log_probs[:, -1][:, tokens])
        return np.stack(kept)

    def read(result, **_):
        return {"log_probs": result}

    serve({"logit_lens": (logit_lens, read)}, ("tuned-lens", "torch", "transformers"))


if __name__ == "__main__":
    main()
