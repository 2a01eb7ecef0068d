"""The catalog of corpora: one row of data for each.

To add a corpus, add a row. If its files have a format of their own, also add a function to `readers`; if it can be
downloaded, also a row to `downloads`. Importing this module reads no files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dataset_utils import readers
from dataset_utils.class_indices import binarize, parse_class_label
from dataset_utils.hub import HubSource
from dataset_utils.splits import SPLITS, Split, split_validation
from dataset_utils.story_grammar import TOPICS

SplitFn = Callable[[dict[str, Split], int, list[str]], dict[str, Split]]

# Names of the three splits in file names; the first is the one we write.
FILE_STEMS = {"train": ("train",), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}


def detokenize(text: str) -> str:
    """Undo tokenization: join punctuation and contractions to the word before (Hugging Face's clean-up)."""
    for separate, joined in _DETOKENIZE:
        text = text.replace(separate, joined)
    return text


_DETOKENIZE = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def detokenize_ptb(text: str) -> str:
    """Undo the escapes of the Penn Treebank, then detokenize.

    Differs from the reference, which trains on `co-writer\\/director` and `-LRB-` as they are in the treebank.
    """
    for escaped, plain in _ESCAPES:
        text = text.replace(escaped, plain)
    return detokenize(text)


_ESCAPES = (("\\/", "/"), ("\\*", "*"), ("-LRB- ", "("), (" -RRB-", ")"), ("-LRB-", "("), ("-RRB-", ")"))


@dataclass(frozen=True)
class DatasetSpec:
    """A corpus: its files, columns and metrics; a row of the catalog."""

    description: str = ""  # a few words
    license: str = ""  # license of the corpus; this project cannot grant it
    how_to_get: str = ""  # an instruction; {place} is replaced by its folder
    folders: tuple[str, ...] = ()  # below the data root
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # split -> names; empty: train.jsonl ...
    read: readers.Reader | None = None  # None: by the file name extension
    hub: HubSource | None = None  # source on the hub, used if no file is found
    text: str | None = "text"
    source: str | None = None
    label: str | None = None
    label_file: str | None = None  # `text <tab> label` lines, if the other files hold texts only
    class_names: tuple[str, ...] = ()
    label_to_index: Callable[[Any, Sequence[str]], int] = parse_class_label
    clean: Callable[[str], str] | None = None
    split_fn: SplitFn | None = None
    max_tokens: int = 64  # longest text, as in published runs
    max_source_tokens: int = 64
    language: str | None = "en"  # language of the texts, ISO 639-1; None: unknown
    source_language: str | None = "en"
    metrics: tuple[str, ...] = ()  # metrics of a run with sources

    @property
    def kind(self) -> str:
        """Condition -> text, for the list of corpora."""
        if self.source:
            return "source -> text"
        return f"{len(self.class_names)} classes" if self.class_names else "text"


PARAPHRASE_METRICS = ("bleu", "rouge", "bertscore")
_STORIES = "make it with `python -m dataset_utils.tales --output_dir {place}`"
_DIFFUSEQ_FILES = "copy the files of DiffuSeq there: train.jsonl, valid.jsonl and test.jsonl with src and trg"
_MINIMAL = "get it from https://github.com/madaan/minimal-text-diffusion (its folder data)"
_MINIMAL_LICENSE = "MIT (minimal-text-diffusion)"
_E2E_LICENSE = "CC BY-SA 4.0 (Novikova et al. 2017)"
_E2E = "run scripts/data/e2e.sh, or copy src1_train.txt, src1_valid.txt and src1_test.txt there"
_E2E_FILES = {s: (f"src1_{s}.txt", *(f"{stem}.txt" for stem in FILE_STEMS[s])) for s in SPLITS}


def _wmt14(source: str, target: str) -> DatasetSpec:
    one_language, pair = f"one language of WMT14 ({target}), for autoencoders", f"translation, {source} to {target}"
    return DatasetSpec(
        description=one_language if source == target else pair,
        license="research use, by the terms of its parts (statmt.org/wmt14)",
        how_to_get="run scripts/data/wmt14.sh, or copy train.jsonl, valid.jsonl and test.jsonl there, with de and en",
        folders=("wmt14",), hub=HubSource("wmt/wmt14", "de-en"), text=target, source=source, clean=detokenize,
        language=target, source_language=source, metrics=("sacrebleu", "bertscore"),
    )  # fmt: skip


DATASETS: dict[str, DatasetSpec] = {
    "tales": DatasetSpec(
        description="small stories, generated here", license="ours (made by a grammar)",
        how_to_get=_STORIES, folders=("tales",), label="label", class_names=tuple(TOPICS)),
    "tales-pairs": DatasetSpec(
        description="paraphrases of such stories", license="ours (made by a grammar)",
        how_to_get=_STORIES, folders=("tales",), files={s: (f"pairs_{s}.jsonl",) for s in SPLITS},
        text="trg", source="src", metrics=PARAPHRASE_METRICS),
    "roc": DatasetSpec(
        description="five-sentence stories (ROCStories)", license="research use, on request (Mostafazadeh et al. 2016)",
        how_to_get="run scripts/data/roc.sh, or ask for it at https://cs.rochester.edu/nlp/rocstories and write "
               'roc_train.json and roc_valid.json, a list ["story"] per line',
        folders=("ROCstory", "roc"), read=readers.rocstories, split_fn=split_validation,
        files={"train": ("roc_train.json", "train.json"), "valid": ("roc_valid.json", "valid.json", "val.json"),
               "test": ("roc_test.json", "test.json")}),
    "e2e": DatasetSpec(
        description="restaurant descriptions (E2E)", license=_E2E_LICENSE, how_to_get=_E2E,
        folders=("e2e_data", "e2e"), read=readers.e2e, clean=detokenize, files=_E2E_FILES),
    "e2e-mr": DatasetSpec(
        description="the same, from their meaning representation", license=_E2E_LICENSE, how_to_get=_E2E,
        folders=("e2e_data", "e2e"), read=readers.e2e, clean=detokenize, files=_E2E_FILES,
        source="meaning", metrics=PARAPHRASE_METRICS),
    "sst": DatasetSpec(
        description="film reviews (Stanford Sentiment Treebank)",
        license="none stated; research use (Socher et al. 2013)",
        how_to_get="run scripts/data/sst.sh, or copy train.jsonl and valid.jsonl there, with sentence and label",
        folders=("sst",), hub=HubSource("stanfordnlp/sst", revision="refs/convert/parquet"),
        text="sentence", label="label", class_names=("negative", "positive"),
        label_to_index=binarize, clean=detokenize_ptb),
    # Differs from the reference's second release, which keeps the description alone: title and description.
    "ag_news": DatasetSpec(
        description="news (AG's corpus)", license="non-commercial use (Zhang et al. 2015)",
        how_to_get="run scripts/data/ag_news.sh, or copy train.jsonl and test.jsonl there, with text and label",
        folders=("ag_news",), hub=HubSource("fancyzhx/ag_news"),
        label="label", class_names=("world", "sports", "business", "sci_tech"), clean=detokenize),
    "xsum": DatasetSpec(
        description="one-sentence summaries of articles (XSum)",
        license="none stated; BBC articles (Narayan et al. 2018)",
        how_to_get="run scripts/data/xsum.sh, or copy train.jsonl, valid.jsonl and test.jsonl there, "
                   "with document and summary",
        folders=("xsum",), hub=HubSource("EdinburghNLP/xsum", revision="refs/convert/parquet"),
        text="summary", source="document", clean=detokenize, max_source_tokens=256, metrics=("rouge", "bertscore")),
    "qqp": DatasetSpec(
        description="questions asked in other words (Quora)", license="Quora's terms of service, non-commercial use",
        how_to_get=f"run scripts/data/qqp.sh, or {_DIFFUSEQ_FILES}",
        folders=("qqp", "QQP"), text="trg", source="src", metrics=PARAPHRASE_METRICS),
    "quasar-t": DatasetSpec(
        description="questions from a passage that answers them (Quasar-T)",
        license="BSD 3-clause (Dhingra et al. 2017)",
        how_to_get=f"run scripts/data/quasar-t.sh, or {_DIFFUSEQ_FILES}",
        folders=("quasar-t", "Quasar-T", "QG"), text="trg", source="src", max_source_tokens=128,
        metrics=PARAPHRASE_METRICS),
    "wiki-auto": DatasetSpec(
        description="sentences made simple (Wikipedia)", license="CC BY-SA 3.0 (Jiang et al. 2020)",
        how_to_get=f"run scripts/data/wiki-auto.sh, or {_DIFFUSEQ_FILES}",
        folders=("wiki-auto", "Wiki-Auto", "Wiki-alignment"), text="trg", source="src", max_tokens=128,
        max_source_tokens=128, metrics=PARAPHRASE_METRICS),
    "commonsense": DatasetSpec(
        description="replies to posts (Commonsense Conversation)",
        license="none stated; Reddit posts (Zhou et al. 2018)",
        how_to_get=f"run scripts/data/commonsense.sh, or {_DIFFUSEQ_FILES}",
        folders=("commonsense", "CommonsenseConversation", "Commonsense"), text="trg", source="src",
        metrics=PARAPHRASE_METRICS),
    "wmt14-de-en": _wmt14("de", "en"),
    "wmt14-en-de": _wmt14("en", "de"),
    "wmt14-de-de": _wmt14("de", "de"),
    "wmt14-en-en": _wmt14("en", "en"),
    "simple": DatasetSpec(
        description="toy sentences of colors and food", license=_MINIMAL_LICENSE,
        how_to_get=_MINIMAL, folders=("simple",), read=readers.plain,
        label_file="simple_labeled.tsv", class_names=("0", "1"),
        files={"train": ("simple-train.txt",), "valid": ("simple-valid.txt",), "test": ("simple-test.txt",)}),
    "greetings": DatasetSpec(  # its labels leave out some lines: not used
        description="toy greetings", license=_MINIMAL_LICENSE,
        how_to_get=_MINIMAL, folders=("greetings",), read=readers.plain,
        files={"train": ("greetings-train.txt",), "valid": ("greetings-valid.txt",), "test": ("greetings-test.txt",)}),
}  # fmt: skip
