"""Settings and fixtures that all tests share.

lensbench itself is imported inside fixtures only: its functions are instrumented when they are first imported.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

# Before torch and huggingface_hub are imported: tiny models are slower on many threads, and no test asks the network.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest
import torch

from tests.shapes import check_shapes

check_shapes()
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
# The modules that take longest, which begin first: a process that ends with one of them lets the other wait.
LONGEST = (
    "test_notebooks",
    "test_survival",
    "test_real_model",
    "test_intervention",
    "test_calibration",
    "test_ray",
    "test_unsaid",
    "test_more_lenses",
    "test_cli",
    "test_golden",
    "test_shipped",
    "test_isolation",
    "test_exam",
    "test_docs",
    "test_evaluate",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="write tests/evaluation/golden.json anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="module", autouse=True)
def figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave out the figures of runs, a third of a small run's time, except in modules that set FIGURES = True."""
    with pytest.MonkeyPatch.context() as patch:
        if not getattr(request.module, "FIGURES", False):
            patch.setattr("lensbench.report.writing.plot_run", lambda *_, **__: [])
        yield


@pytest.fixture
def isolated_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty LENSBENCH_CACHE for this test alone."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("LENSBENCH_CACHE", str(cache))
    return cache


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The real SmolLM2-135M as a Hugging Face folder, in the user's cache so that it is converted only once."""
    yield from builtin_folder("smollm2-135m", tmp_path_factory)


@pytest.fixture(scope="session")
def gemma3_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The real Gemma 3 270M, likewise; the tests that need it are skipped where it is not installed."""
    yield from builtin_folder("gemma3-270m", tmp_path_factory)


def builtin_folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from lensbench.errors import LensbenchError, UsageError
    from lensbench.models.sources import check_model_name, resolve
    from lensbench.utils.cache import cache_root

    with pytest.MonkeyPatch.context() as patch:
        try:
            cache_root()
        except UsageError:
            patch.setenv("LENSBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        try:
            check_model_name(name)
        except LensbenchError as missing:
            pytest.skip(str(missing))
        yield Path(resolve(name).location)


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers, with a byte-level tokenizer trained on the tasks, as a Hugging Face folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_task_texts(), trainer)
    folder = tmp_path_factory.mktemp("tiny-llama")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _task_texts() -> list[str]:
    """Facts of the tasks as words with a blank before them, as they stand in prompts."""
    texts = ["The quick brown fox jumps over the lazy dog."]
    for path in sorted((ROOT / "tasks").glob("*/items.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            values = [value for value in json.loads(line).values() if isinstance(value, str)]
            texts += [f" {value}" for value in values if len(value) < 40]
    return texts
