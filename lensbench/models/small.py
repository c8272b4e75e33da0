"""A small random model, made on the spot: what methods are checked on, without weights or a network."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lensbench.models.language_model import LanguageModel
from lensbench.models.tokens import Tokens

VOCAB = 600


def train_tokenizer(text: str, *, bos: bool = False) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of 600 tokens, trained on a text.

    Args:
        text: some pages of prose.
        bos: whether it puts a token of its own before each text.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<bos>", "<eos>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator([text], trainer)
    if bos:
        bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **names)


def small_model(text: str, seed: int = 0) -> LanguageModel:
    """Return a random Llama of four layers and 32 dimensions.

    Args:
        text: what its tokenizer is trained on.
        seed: of its weights.
    """
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = LlamaForCausalLM(config).float().eval()
    enlarge(module)
    return LanguageModel(module, Tokens(train_tokenizer(text)), "small-random-llama")


@torch.no_grad()
def enlarge(module: torch.nn.Module) -> None:
    """Make a fresh model's matrices four times as large, so that its layers differ by more than rounding."""
    for parameter in module.parameters():
        if parameter.dim() >= 2:
            parameter.mul_(4.0)
