"""Where corpora come from, as data: addresses, checksums where they are known, and what turns the files into ours.

To make a corpus of the catalog fetchable, add a row. Fetches nothing itself.

Where sha256 is None nobody who wrote this had the file at hand: what is fetched first is then recorded beside it, and
compared from then on. Addresses were collected from the corpora's own pages, papers and packages. None of them could be
tried where this was written; the conversions are tested on small files of the same form.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch

from dataset_utils import convert
from dataset_utils.convert import Convert


@dataclass(frozen=True)
class Remote:
    """A file to fetch."""

    name: str  # what it is called here
    url: str  # https
    sha256: str | None = None


@dataclass(frozen=True)
class HubParquet:
    """The hub's parquet copy of a repository; which shards there are, its index says. splits: theirs."""

    repository: str
    config: str
    splits: tuple[str, ...]


@dataclass(frozen=True)
class Form:
    """A set of files that a corpus may come in: every pattern has a file; what turns them into ours."""

    patterns: tuple[str, ...]
    convert: Convert

    def match(self, names: list[str]) -> list[str]:
        """The files that belong to it; none, where a pattern has no file."""
        found = [[n for n in names if fnmatch(n.lower(), pattern)] for pattern in self.patterns]
        return [name for group in found for name in group] if all(found) else []


@dataclass(frozen=True)
class Upstream:
    """A corpus at its source. forms: the first that the files have is taken."""

    forms: tuple[Form, ...]
    files: tuple[Remote, ...] = ()
    hub: HubParquet | None = None
    corpus: str = ""  # the row of the catalog, where it is called otherwise
    note: str = ""  # what a user should know before fetching


_GITHUB = "https://raw.githubusercontent.com"
_DIFFUSION_LM = f"{_GITHUB}/XiangLisaLi2/Diffusion-LM/main/datasets"
_WIKI_AUTO = "https://github.com/chaojiang06/wiki-auto/raw/master/wiki-auto/GEM2021/full_no_split"
_PAIRS = Form(("train.jsonl", "valid.jsonl", "test.jsonl"), convert.pairs)
_SHARDS = ("train*.parquet", "test*.parquet")
_THREE_SHARDS = ("train*.parquet", "valid*.parquet", "test*.parquet")
_NOT_DIFFUSEQS = "other rows than DiffuSeq's own files: for figures beside DiffuSeq's give those with --from FOLDER"

UPSTREAM: dict[str, Upstream] = {
    "roc": Upstream(
        files=tuple(Remote(f"roc_{s}.json", f"{_DIFFUSION_LM}/ROCstory/roc_{s}.json") for s in ("train", "valid")),
        forms=(
            Form(("roc_train.json", "roc_valid.json"), convert.as_is),
            Form(("*rocstories*.csv",), convert.roc_tables),
        ),
        note="the authors ask that you register at https://cs.rochester.edu/nlp/rocstories; with the .csv files that "
        "they send: --from FOLDER. These are the copies that published systems train on",
    ),
    "e2e": Upstream(
        files=(
            Remote("e2e-dataset-1.0.0.zip", "https://github.com/tuetschek/e2e-dataset/archive/refs/tags/v1.0.0.zip"),
        ),
        forms=(
            Form(("e2e-dataset*.zip",), convert.e2e),
            Form(("trainset.csv", "devset.csv", "testset_w_refs.csv"), convert.e2e),
            Form(("src1_train.txt", "src1_valid.txt", "src1_test.txt"), convert.as_is),
        ),
    ),
    "sst": Upstream(
        files=(
            Remote(
                "stanfordSentimentTreebank.zip",
                "https://nlp.stanford.edu/~socherr/stanfordSentimentTreebank.zip",
                "3f5209483b46bbf129cacbbbe6ae02fe780407034f61cf6342b7833257c3f1db",
            ),
        ),
        forms=(
            Form(("stanfordsentimenttreebank*.zip",), convert.sst),
            Form(_SHARDS, convert.parquet_shards("sentence", "label")),
        ),
    ),
    "ag_news": Upstream(
        hub=HubParquet("fancyzhx/ag_news", "default", ("train", "test")),
        forms=(
            Form(_SHARDS, convert.parquet_shards("text", "label")),
            Form(("train.csv", "test.csv"), convert.ag_tables),
        ),
    ),
    "xsum": Upstream(
        hub=HubParquet("EdinburghNLP/xsum", "default", ("train", "validation", "test")),
        forms=(Form(_THREE_SHARDS, convert.parquet_shards("document", "summary")),),
    ),
    "qqp": Upstream(
        files=(
            Remote("quora_duplicate_questions.tsv", "https://qim.fs.quoracdn.net/quora_duplicate_questions.tsv"),
        ),
        forms=(Form(("quora_duplicate_questions.tsv",), convert.quora), _PAIRS),
        note=_NOT_DIFFUSEQS,
    ),
    "wmt14": Upstream(
        corpus="wmt14-de-en",
        hub=HubParquet("wmt/wmt14", "de-en", ("train", "validation", "test")),
        forms=(Form(_THREE_SHARDS, convert.parquet_shards("de", "en")),),
    ),
    "quasar-t": Upstream(
        files=(Remote("OpenQA_data.tar.gz", "https://thunlp.oss-cn-qingdao.aliyuncs.com/OpenQA_data.tar.gz"),),
        forms=(Form(("openqa_data*.tar.gz",), convert.openqa), _PAIRS),
        note=_NOT_DIFFUSEQS,
    ),
    "wiki-auto": Upstream(
        files=(Remote("train.src", f"{_WIKI_AUTO}/train.src"), Remote("train.dst", f"{_WIKI_AUTO}/train.dst")),
        forms=(Form(("train.src", "train.dst"), convert.parallel), _PAIRS),
        note=_NOT_DIFFUSEQS,
    ),
    "commonsense": Upstream(
        files=(
            Remote("commonsense_conversation_dataset.tar.gz", "https://cloud.tsinghua.edu.cn/f/d367736aaec64d399b1b/?dl=1"),
        ),
        forms=(
            Form(("commonsense_conversation_dataset*",), convert.conversation),
            Form(("trainset.txt", "validset.txt", "testset.txt"), convert.conversation),
            _PAIRS,
        ),
        note=_NOT_DIFFUSEQS,
    ),
}  # fmt: skip
