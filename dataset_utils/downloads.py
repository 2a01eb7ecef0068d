"""Download sources of corpora, as data: URLs, checksums if known, and the conversion of the files.

To make a corpus of the catalog downloadable, add a row. `fetch` does the downloads.

Where sha256 is None the checksum is unknown: that of the first download is recorded in the folder, and later files
are compared with it. The URLs were collected from the pages, papers and packages of the corpora. None of them could be
tried where this was written; the conversions are tested on small files of the same form.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch

from dataset_utils import convert
from dataset_utils.convert import Convert


@dataclass(frozen=True)
class RemoteFile:
    """A file to download."""

    name: str  # name of the local file
    url: str  # https
    sha256: str | None = None


@dataclass(frozen=True)
class HubParquet:
    """The parquet copy of a repository on the hub; the index of the hub lists its shards."""

    repository: str
    config: str
    splits: tuple[str, ...]  # names of the splits in the repository


@dataclass(frozen=True)
class FileSet:
    """A set of files in which a corpus may be published, and the function that converts them."""

    patterns: tuple[str, ...]  # each must match a file
    convert: Convert

    def match(self, names: list[str]) -> list[str]:
        """The files that match; empty where a pattern matches no file."""
        found = [[n for n in names if fnmatch(n.lower(), pattern)] for pattern in self.patterns]
        return [name for group in found for name in group] if all(found) else []


@dataclass(frozen=True)
class Download:
    """A row: how a corpus is downloaded and converted."""

    file_sets: tuple[FileSet, ...]  # the first that matches is used
    files: tuple[RemoteFile, ...] = ()
    hub: HubParquet | None = None
    corpus: str = ""  # row of the catalog, if its name differs
    note: str = ""  # shown before the download


_GITHUB = "https://raw.githubusercontent.com"
_DIFFUSION_LM = f"{_GITHUB}/XiangLisaLi2/Diffusion-LM/main/datasets"
_WIKI_AUTO = "https://github.com/chaojiang06/wiki-auto/raw/master/wiki-auto/GEM2021/full_no_split"
_PAIRS = FileSet(("train.jsonl", "valid.jsonl", "test.jsonl"), convert.pairs)
_SHARDS = ("train*.parquet", "test*.parquet")
_THREE_SHARDS = ("train*.parquet", "valid*.parquet", "test*.parquet")
_NOT_DIFFUSEQS = "rows differ from DiffuSeq's files: to compare with its results, give those with --from FOLDER"

DOWNLOADS: dict[str, Download] = {
    "roc": Download(
        files=tuple(RemoteFile(f"roc_{s}.json", f"{_DIFFUSION_LM}/ROCstory/roc_{s}.json") for s in ("train", "valid")),
        file_sets=(
            FileSet(("roc_train.json", "roc_valid.json"), convert.passthrough),
            FileSet(("*rocstories*.csv",), convert.roc_tables),
        ),
        note="the authors ask that you register at https://cs.rochester.edu/nlp/rocstories; with the .csv files that "
        "they send: --from FOLDER. These are the copies that published systems train on",
    ),
    "e2e": Download(
        files=(
            RemoteFile("e2e-dataset-1.0.0.zip", "https://github.com/tuetschek/e2e-dataset/archive/refs/tags/v1.0.0.zip"),
        ),
        file_sets=(
            FileSet(("e2e-dataset*.zip",), convert.e2e),
            FileSet(("trainset.csv", "devset.csv", "testset_w_refs.csv"), convert.e2e),
            FileSet(("src1_train.txt", "src1_valid.txt", "src1_test.txt"), convert.passthrough),
        ),
    ),
    "sst": Download(
        files=(
            RemoteFile(
                "stanfordSentimentTreebank.zip",
                "https://nlp.stanford.edu/~socherr/stanfordSentimentTreebank.zip",
                "3f5209483b46bbf129cacbbbe6ae02fe780407034f61cf6342b7833257c3f1db",
            ),
        ),
        file_sets=(
            FileSet(("stanfordsentimenttreebank*.zip",), convert.sst),
            FileSet(_SHARDS, convert.parquet_shards("sentence", "label")),
        ),
    ),
    "ag_news": Download(
        hub=HubParquet("fancyzhx/ag_news", "default", ("train", "test")),
        file_sets=(
            FileSet(_SHARDS, convert.parquet_shards("text", "label")),
            FileSet(("train.csv", "test.csv"), convert.ag_tables),
        ),
    ),
    "xsum": Download(
        hub=HubParquet("EdinburghNLP/xsum", "default", ("train", "validation", "test")),
        file_sets=(FileSet(_THREE_SHARDS, convert.parquet_shards("document", "summary")),),
    ),
    "qqp": Download(
        files=(
            RemoteFile("quora_duplicate_questions.tsv", "https://qim.fs.quoracdn.net/quora_duplicate_questions.tsv"),
        ),
        file_sets=(FileSet(("quora_duplicate_questions.tsv",), convert.quora), _PAIRS),
        note=_NOT_DIFFUSEQS,
    ),
    "wmt14": Download(
        corpus="wmt14-de-en",
        hub=HubParquet("wmt/wmt14", "de-en", ("train", "validation", "test")),
        file_sets=(FileSet(_THREE_SHARDS, convert.parquet_shards("de", "en")),),
    ),
    "quasar-t": Download(
        files=(RemoteFile("OpenQA_data.tar.gz", "https://thunlp.oss-cn-qingdao.aliyuncs.com/OpenQA_data.tar.gz"),),
        file_sets=(FileSet(("openqa_data*.tar.gz",), convert.openqa), _PAIRS),
        note=_NOT_DIFFUSEQS,
    ),
    "wiki-auto": Download(
        files=(RemoteFile("train.src", f"{_WIKI_AUTO}/train.src"), RemoteFile("train.dst", f"{_WIKI_AUTO}/train.dst")),
        file_sets=(FileSet(("train.src", "train.dst"), convert.parallel), _PAIRS),
        note=_NOT_DIFFUSEQS,
    ),
    "commonsense": Download(
        files=(
            RemoteFile("commonsense_conversation_dataset.tar.gz", "https://cloud.tsinghua.edu.cn/f/d367736aaec64d399b1b/?dl=1"),
        ),
        file_sets=(
            FileSet(("commonsense_conversation_dataset*",), convert.conversation),
            FileSet(("trainset.txt", "validset.txt", "testset.txt"), convert.conversation),
            _PAIRS,
        ),
        note=_NOT_DIFFUSEQS,
    ),
}  # fmt: skip
