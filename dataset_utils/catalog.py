"""The registry's rows: what is to be known of each corpus, as data.

To add a corpus, add a row. Where its files have a format of their own, add a function to `readers`; where it can be
fetched, a row to `upstream`. Names readers, and reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dataset_utils import readers
from dataset_utils.columns import class_number, half
from dataset_utils.hub import HubSource
from dataset_utils.splits import SPLITS, Split, divide_valid
from dataset_utils.story_grammar import TOPICS

Divide = Callable[[dict[str, Split], int, list[str]], dict[str, Split]]

# What the three splits are called in file names, the first being ours.
FILE_STEMS = {"train": ("train",), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}


def tidy(text: str) -> str:
    """Undo tokenization: join punctuation and contractions to the word before (Hugging Face's clean-up)."""
    for apart, joined in _TIDY:
        text = text.replace(apart, joined)
    return text


_TIDY = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def treebank(text: str) -> str:
    """Undo the Penn treebank's escapes, then tidy.

    Differs from the reference, which trains on `co-writer\\/director` and `-LRB-` as they stand in the treebank.
    """
    for escaped, plain in _ESCAPES:
        text = text.replace(escaped, plain)
    return tidy(text)


_ESCAPES = (("\\/", "/"), ("\\*", "*"), ("-LRB- ", "("), (" -RRB-", ")"), ("-LRB-", "("), ("-RRB-", ")"))


@dataclass(frozen=True)
class DatasetSpec:
    """What is to be known of a corpus."""

    about: str = ""  # a few words, for the list of corpora
    licence: str = ""  # whose terms; ours is not the right to grant them
    origin: str = ""  # where to get it, as an order; {place} is its folder
    folders: tuple[str, ...] = ()  # below the data root
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # split -> names; none: train.jsonl and the like
    read: readers.Reader | None = None  # None: by the end of the file's name
    hub: HubSource | None = None  # where it is fetched from when no file is there
    text: str | None = "text"
    source: str | None = None
    label: str | None = None
    label_file: str | None = None  # `text <tab> label` lines, beside files that hold the text alone
    class_names: tuple[str, ...] = ()
    class_of: Callable[[Any, Sequence[str]], int] = class_number
    clean: Callable[[str], str] | None = None
    divide: Divide | None = None
    max_tokens: int = 64  # of a text, as published runs cut it
    max_source_tokens: int = 64
    language: str | None = "en"  # of the text, ISO 639-1; None: not known
    source_language: str | None = "en"
    metrics: tuple[str, ...] = ()  # of seq2seq

    @property
    def kind(self) -> str:
        """What generation may depend on."""
        if self.source:
            return "source -> text"
        return f"{len(self.class_names)} classes" if self.class_names else "text"


PARAPHRASE = ("bleu", "rouge", "bertscore")
_TALES = "make it with `python -m dataset_utils.tales --output_dir {place}`"
_MINIMAL = "get it from https://github.com/madaan/minimal-text-diffusion (its folder data)"
_MINIMAL_LICENCE = "MIT (minimal-text-diffusion)"
_E2E_LICENCE = "CC BY-SA 4.0 (Novikova et al. 2017)"
_E2E = "run scripts/data/e2e.sh, or copy src1_train.txt, src1_valid.txt and src1_test.txt there"
_E2E_FILES = {s: (f"src1_{s}.txt", *(f"{stem}.txt" for stem in FILE_STEMS[s])) for s in SPLITS}


def _wmt14(source: str, target: str) -> DatasetSpec:
    same = source == target
    return DatasetSpec(
        about=f"one language of WMT14 ({target}), for autoencoders" if same else f"translation, {source} to {target}",
        licence="research use, by the terms of its parts (statmt.org/wmt14)",
        origin="run scripts/data/wmt14.sh, or give train.jsonl, valid.jsonl and test.jsonl with de and en",
        folders=("wmt14",), hub=HubSource("wmt/wmt14", "de-en"), text=target, source=source, clean=tidy,
        language=target, source_language=source, metrics=("sacrebleu", "bertscore"),
    )  # fmt: skip


DATASETS: dict[str, DatasetSpec] = {
    "tales": DatasetSpec(
        about="small stories, generated here", licence="ours (made by a grammar)",
        origin=_TALES, folders=("tales",), label="label", class_names=tuple(TOPICS)),
    "tales-pairs": DatasetSpec(
        about="paraphrases of such stories", licence="ours (made by a grammar)",
        origin=_TALES, folders=("tales",), files={s: (f"pairs_{s}.jsonl",) for s in SPLITS},
        text="trg", source="src", metrics=PARAPHRASE),
    "roc": DatasetSpec(
        about="five-sentence stories (ROCStories)", licence="research use, on request (Mostafazadeh et al. 2016)",
        origin="run scripts/data/roc.sh, or ask for it at https://cs.rochester.edu/nlp/rocstories and write "
               'roc_train.json and roc_valid.json, a list ["story"] per line',
        folders=("ROCstory", "roc"), read=readers.rocstories, divide=divide_valid,
        files={"train": ("roc_train.json", "train.json"), "valid": ("roc_valid.json", "valid.json", "val.json"),
               "test": ("roc_test.json", "test.json")}),
    "e2e": DatasetSpec(
        about="restaurant descriptions (E2E)", licence=_E2E_LICENCE, origin=_E2E,
        folders=("e2e_data", "e2e"), read=readers.e2e, clean=tidy, files=_E2E_FILES),
    "e2e-mr": DatasetSpec(
        about="the same, from their meaning representation", licence=_E2E_LICENCE, origin=_E2E,
        folders=("e2e_data", "e2e"), read=readers.e2e, clean=tidy, files=_E2E_FILES,
        source="meaning", metrics=PARAPHRASE),
    "sst": DatasetSpec(
        about="film reviews (Stanford Sentiment Treebank)", licence="none stated; research use (Socher et al. 2013)",
        origin="run scripts/data/sst.sh, or give train.jsonl and valid.jsonl with sentence and label",
        folders=("sst",), hub=HubSource("stanfordnlp/sst", revision="refs/convert/parquet"),
        text="sentence", label="label", class_names=("negative", "positive"), class_of=half, clean=treebank),
    # Differs from the reference's second release, which keeps the description alone: title and description.
    "ag_news": DatasetSpec(
        about="news (AG's corpus)", licence="non-commercial use (Zhang et al. 2015)",
        origin="run scripts/data/ag_news.sh, or give train.jsonl and test.jsonl with text and label",
        folders=("ag_news",), hub=HubSource("fancyzhx/ag_news"),
        label="label", class_names=("world", "sports", "business", "sci_tech"), clean=tidy),
    "xsum": DatasetSpec(
        about="one-sentence summaries of articles (XSum)", licence="none stated; BBC articles (Narayan et al. 2018)",
        origin="run scripts/data/xsum.sh, or give train.jsonl, valid.jsonl and test.jsonl with document and summary",
        folders=("xsum",), hub=HubSource("EdinburghNLP/xsum", revision="refs/convert/parquet"),
        text="summary", source="document", clean=tidy, max_source_tokens=256, metrics=("rouge", "bertscore")),
    "qqp": DatasetSpec(
        about="questions asked in other words (Quora)", licence="Quora's terms of service, non-commercial use",
        origin="run scripts/data/qqp.sh, or give DiffuSeq's train.jsonl, valid.jsonl and test.jsonl with src and trg",
        folders=("qqp", "QQP"), text="trg", source="src", metrics=PARAPHRASE),
    "quasar-t": DatasetSpec(
        about="questions from a passage that answers them (Quasar-T)", licence="BSD 3-clause (Dhingra et al. 2017)",
        origin="run scripts/data/quasar-t.sh, or give DiffuSeq's train.jsonl, valid.jsonl and test.jsonl, src and trg",
        folders=("quasar-t", "Quasar-T", "QG"), text="trg", source="src", max_source_tokens=128, metrics=PARAPHRASE),
    "wiki-auto": DatasetSpec(
        about="sentences made simple (Wikipedia)", licence="CC BY-SA 3.0 (Jiang et al. 2020)",
        origin="run scripts/data/wiki-auto.sh, or give DiffuSeq's train.jsonl, valid.jsonl and test.jsonl, src and trg",
        folders=("wiki-auto", "Wiki-Auto", "Wiki-alignment"), text="trg", source="src", max_tokens=128,
        max_source_tokens=128, metrics=PARAPHRASE),
    "commonsense": DatasetSpec(
        about="replies to posts (Commonsense Conversation)", licence="none stated; Reddit posts (Zhou et al. 2018)",
        origin="run scripts/data/commonsense.sh, or give DiffuSeq's train.jsonl, valid.jsonl, test.jsonl, src and trg",
        folders=("commonsense", "CommonsenseConversation", "Commonsense"), text="trg", source="src",
        metrics=PARAPHRASE),
    "wmt14-de-en": _wmt14("de", "en"),
    "wmt14-en-de": _wmt14("en", "de"),
    "wmt14-de-de": _wmt14("de", "de"),
    "wmt14-en-en": _wmt14("en", "en"),
    "simple": DatasetSpec(
        about="toy sentences of colours and food", licence=_MINIMAL_LICENCE,
        origin=_MINIMAL, folders=("simple",), read=readers.plain,
        label_file="simple_labeled.tsv", class_names=("0", "1"),
        files={"train": ("simple-train.txt",), "valid": ("simple-valid.txt",), "test": ("simple-test.txt",)}),
    "greetings": DatasetSpec(  # its labels leave out some lines: not used
        about="toy greetings", licence=_MINIMAL_LICENCE,
        origin=_MINIMAL, folders=("greetings",), read=readers.plain,
        files={"train": ("greetings-train.txt",), "valid": ("greetings-valid.txt",), "test": ("greetings-test.txt",)}),
}  # fmt: skip
