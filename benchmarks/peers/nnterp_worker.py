"""Patchscope and logit lens of nnterp 1.3 (on nnsight); run by benchmarks/patchscope.py and logit_lens.py.

It runs in an environment of its own and must not import lensbench. Both functions return the probabilities of the
whole vocabulary on the CPU; what the comparison needs of them is read afterwards and not timed.
"""

import sys

import torch
from nnterp import StandardizedTransformer
from nnterp.interventions import TargetPrompt, logit_lens, patchscope_lens
from worker import serve


def chosen(probabilities, tokens):
    """Return log-probabilities and ranks of some tokens, [prompt, layer, token], and the ten likeliest."""
    flat = probabilities.flatten(0, 1)
    asked = flat[:, tokens]
    ranks = torch.stack([(flat > column[:, None]).sum(1) for column in asked.T], dim=1)
    shape = (*probabilities.shape[:2], len(tokens))
    top = probabilities.topk(10, dim=-1).indices
    return {"log_probs": asked.log().reshape(shape).numpy(), "ranks": ranks.reshape(shape).numpy(), "top": top.numpy()}


def main() -> None:
    """Load the model and answer jobs."""
    model = StandardizedTransformer(sys.argv[1], device_map="cpu", dtype=torch.float32)
    model.dispatch()
    # nnterp turns gradients off, but nnsight runs what is inside a trace in another thread, where they are on.
    model._model.requires_grad_(False)

    def patchscope(sources, prompt, position, layers, batch, tokens):
        del tokens
        target = TargetPrompt(prompt, position)
        chunks = [sources[i : i + batch] for i in range(0, len(sources), batch)]
        return torch.cat([patchscope_lens(model, chunk, target, layers=layers) for chunk in chunks])

    def lens(prompts, batch, tokens):
        del tokens
        return torch.cat([logit_lens(model, prompts[i : i + batch]) for i in range(0, len(prompts), batch)])

    def read(result, tokens, **_):
        return chosen(result, tokens)

    serve({"patchscope": (patchscope, read), "logit_lens": (lens, read)}, ("nnterp", "nnsight", "torch"))


if __name__ == "__main__":
    main()
