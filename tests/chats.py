"""Tiny models under the chat templates of four families, with and without BOS."""

import copy
from functools import cache

from lensbench.models.language_model import LanguageModel
from lensbench.models.tokens import Tokens
from tests import tiny

# Turns are marked with the special tokens that the tiny tokenizer has; roles and blanks are those of the families.
TEMPLATES = {
    # A system turn of its own, where none is given; no BOS.
    "chatml": (
        "{% if messages[0]['role'] != 'system' %}{{ '<pad>system\nYou help.<eos>\n' }}{% endif %}"
        "{% for m in messages %}{{ '<pad>' + m['role'] + '\n' + m['content'] + '<eos>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<pad>assistant\n' }}{% endif %}"
    ),
    # BOS in the template, texts trimmed, any role.
    "llama3": (
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<pad>' + m['role'] + '<pad>\n\n' + m['content'] | trim + '<eos>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<pad>assistant<pad>\n\n' }}{% endif %}"
    ),
    # BOS in the template; the assistant is the `model`, other roles are refused, and thinking can be switched off.
    "gemma": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m['role'] not in ['user', 'assistant'] %}{{ raise_exception('an unknown role') }}{% endif %}"
        "{{ '<pad>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + '<eos>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<pad>model\n' }}"
        "{% if enable_thinking is false %}{{ '<none>\n' }}{% endif %}{% endif %}"
    ),
    # A tokenizer that adds BOS, a template that has none.
    "zephyr": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<eos>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
}
ADDS_BOS = {"llama3", "gemma", "zephyr"}


@cache
def model(family: str, kind: str = "llama") -> LanguageModel:
    """Return a tiny model whose tokenizer has a family's template; shared between tests, which must not change it."""
    tokenizer = copy.deepcopy(tiny.tokenizer(bos=family in ADDS_BOS))
    tokenizer.chat_template = TEMPLATES[family]
    return LanguageModel(tiny.module(kind), Tokens(tokenizer), f"tiny-{family}")
