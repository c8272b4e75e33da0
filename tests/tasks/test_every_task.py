"""What holds for every task that ships, whatever the tokenizer."""

import subprocess
import time
from functools import cache

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lensbench.models.corpus import PROSE
from lensbench.models.loading import train_tokenizer
from lensbench.models.tokens import Tokens
from lensbench.tasks import data_root, find_tasks, load_task

PER_PLACE = 40
TASKS = sorted(find_tasks())


@cache
def tokens(kind: str) -> Tokens:
    prose = (PROSE / "heldout.txt").read_text(encoding="utf-8")
    if kind != "sentencepiece":
        return Tokens(train_tokenizer(prose, bos=kind == "byte-level with BOS"))
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=["<s>", "<unk>", *fallback], show_progress=False)
    tokenizer.train_from_iterator([prose], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return Tokens(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>"))


@pytest.mark.parametrize("name", TASKS)
def test_loads_in_two_seconds_and_twice_the_same(name) -> None:
    begun = time.process_time()
    task = load_task(name)
    assert time.process_time() - begun < 2
    again = load_task(name)
    for site in task.sites:
        assert task.items(site, "test", 50, 1) == again.items(site, "test", 50, 1)


@pytest.mark.parametrize("kind", ["byte-level", "byte-level with BOS", "sentencepiece"])
@pytest.mark.parametrize("name", TASKS)
def test_tokenizers_change_neither_site_nor_gold(name, kind) -> None:
    task, own = load_task(name), tokens(kind)
    for site in task.sites:
        for item in task.items(site, "test", PER_PLACE):
            encoding = own.encode(item.source)
            place = own.locate(encoding, item.subject_span) if site == "subject" else own.last(encoding)
            end = item.subject_span[1] if site == "subject" else len(item.source)
            assert encoding.offsets[place][1] == end, item.id
            assert place > 0
            if item.answer:
                word = own.decode([own.answer_token(item.answer)]).strip()
                # Characters outside the vocabulary are bytes: a part of one decodes to no letter.
                assert item.answer.startswith(word) or not word.isascii(), (item.id, word)


@pytest.mark.parametrize("name", TASKS)
def test_gold_is_a_choice_and_the_readme_is_whole(name) -> None:
    task = load_task(name)
    for site in task.sites:
        for item in task.items(site, "test"):
            assert (item.answer in item.choices) if item.choices else item.answer == ""
    readme = (task.folder / "README.md").read_text(encoding="utf-8")
    for heading in ("## Counts", "## Leak audit", "## Correctness", "## Known weaknesses"):
        assert heading in readme
    assert f"{len(task.facts):,}".replace(",", "") in readme.replace(",", "") or name == "next_token"


def test_data_are_small() -> None:
    folder = data_root() / "tasks"
    listed = subprocess.run(["git", "ls-files", "-z", str(folder)], capture_output=True, cwd=folder, check=False)
    names = [name for name in listed.stdout.decode().split("\0") if name]
    files = [folder / name for name in names] or [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15 * 2**20
