"""Downloads are verified and resumed; every published file set is converted into what the catalog reads."""

from __future__ import annotations

import csv
import hashlib
import http.server
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dataset_utils import fetch
from dataset_utils.catalog import DATASETS
from dataset_utils.corpus import Corpus
from dataset_utils.downloads import DOWNLOADS, HubParquet, RemoteFile
from dataset_utils.options import DataOptions
from dataset_utils.registry import load
from dataset_utils.splits import SPLITS
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = range(40)


# ------------------------------------------------------------------------------------------------ upstream's forms


def lines(*rows: str) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


def jsonl(rows) -> bytes:
    return lines(*map(json.dumps, rows))


def table(*rows, delimiter: str = ",") -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def zipped(**members: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"some-folder/{name}", content)
            archive.writestr(f"__MACOSX/some-folder/{name}", b"not this")
    return packed.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"some_folder/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def parquet(rows: list[dict]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    packed = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), packed)
    return packed.getvalue()


def three(make) -> dict[str, bytes]:
    return {split: make(split) for split in SPLITS}


MEANING = "name[The Vaults], eatType[pub], priceRange[more than £30], familyFriendly[yes]"
E2E = {
    f"{stem}.csv": table(("mr", "ref"), *((MEANING, f'A "{stem}" pub, {i}.') for i in NUMBERS))
    for stem in ("trainset", "devset", "testset_w_refs")
}
SST = {
    "datasetSentences.txt": lines(
        "sentence_index\tsentence", "1\tA fine cafÃ© -LRB- really -RRB- .", "2\tBad | worse .", "3\tSo\\/so ."
    ),
    "datasetSplit.txt": lines("sentence_index,splitset_label", "1,1", "2,3", "3,2"),
    "dictionary.txt": lines("A fine café ( really ) .|7", "Bad | worse .|8", "fine|9", "So\\/so .|10"),
    "sentiment_labels.txt": lines("phrase ids|sentiment values", "7|0.9", "8|0.1", "9|0.75", "10|0.5"),
}
STORY = ("id", "A title", 'Anna said "hi".', "Ben left.", "It rained.", "He came back.", "All was well.")
ROC = [
    ("storyid", "storytitle", *(f"sentence{i}" for i in range(1, 6))),
    *((i, *STORY[1:6], f"End {i}.") for i in NUMBERS),
]
QUORA = [
    ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
    *((i, 0, 0, f'What is "{i}"?', f"Which is {i}?", i % 2) for i in NUMBERS),
]
OPENQA = {}
for part in ("train", "dev", "test"):
    passages = [{"question": "", "document": text} for text in ("no .", f"{part} likes fish .", "fish")]
    OPENQA[f"datasets/quasart/{part}.txt"] = jsonl([{"question": f"What does {part} like?", "answers": ["Fish"]}] * 9)
    OPENQA[f"datasets/quasart/{part}.json"] = jsonl([passages] * 9)
CCM = {
    f"{s}set.txt": jsonl({"post": ["how", "are", s, "?"], "response": ["fine", str(i)], "triples": []} for i in NUMBERS)
    for s in ("train", "valid", "test")
}
PAIRS = {f"{s}.jsonl": jsonl({"src": f"a {s} {i}", "trg": f"b {i}"} for i in NUMBERS) for s in SPLITS}
WMT = {
    f"{s}-{k:04d}.parquet": parquet([{"translation": {"de": f"Haus {s} {k} .", "en": f"house {s} {k} ."}}] * 20)
    for s in ("train", "validation", "test") for k in range(2)
}  # fmt: skip
XSUM = {f"{s}-0000.parquet": parquet([{"document": f"long {i}", "summary": f"short {i}", "id": "1"} for i in NUMBERS])
        for s in ("train", "validation", "test")}  # fmt: skip
AG = {s: table(*((1 + i % 4, f"Title {i}", f'He said "{i}".') for i in NUMBERS)) for s in ("train.csv", "test.csv")}
LISTS = {f"roc_{s}.json": lines(*(f'["\\"{s}\\" {i}\\u2019s."]' for i in NUMBERS)) for s in ("train", "valid")}
SIMPLE = {f"train.{end}": lines(*(f"{how} {i} ." for i in NUMBERS)) for end, how in (("src", "Hard"), ("dst", "Easy"))}
SRC1 = {f"src1_{s}.txt": lines("name : A||It is , well .") * 9 for s in SPLITS}
# name of the fetch, upstream's files, row of the catalog, first training text, its source or label, sizes as written
FORMS = {
    "roc_lists": ("roc", LISTS, "roc", '"train" 0’s.', None, (40, 40, 0)),
    "roc_tables": ("roc", {"ROCStories_winter2017.csv": table(*ROC)}, "roc",
                   'Anna said "hi". Ben left. It rained. He came back. End', None, (38, 2, 0)),
    "e2e_zip": ("e2e", {"e2e-dataset-1.0.0.zip": zipped(**E2E)}, "e2e-mr", 'A "trainset" pub, 0.',
                "name : The Vaults | Type : pub | price : more than £30 | family friendly : yes", (40, 40, 40)),
    "e2e_tables": ("e2e", E2E, "e2e", 'A "trainset" pub, 0.', None, (40, 40, 40)),
    "e2e_lines": ("e2e", SRC1, "e2e-mr", "It is, well.", "name : A", (9, 9, 9)),
    "sst": ("sst", {"stanfordSentimentTreebank.zip": zipped(**SST)}, "sst", "A fine café ( really ).", 1, (1, 1, 1)),
    "ag_parquet": ("ag_news", {f"{s}-0000.parquet": parquet([{"text": f"t {i}", "label": i % 4} for i in NUMBERS])
                               for s in ("train", "test")}, "ag_news", "t", 3, (40, 0, 40)),
    "ag_tables": ("ag_news", AG, "ag_news", 'Title', 3, (40, 0, 40)),
    "xsum": ("xsum", XSUM, "xsum", "short 0", "long 0", (40, 40, 40)),
    "quora": ("qqp", {"quora_duplicate_questions.tsv": table(*QUORA, delimiter="\t")}, "qqp", "Which is", 'What is "',
              (16, 2, 2)),
    "qqp_pairs": ("qqp", PAIRS, "qqp", "b 0", "a train 0", (40, 40, 40)),
    "wmt14": ("wmt14", WMT, "wmt14-en-de", "Haus train 0.", "house train 0.", (40, 40, 40)),
    "openqa": ("quasar-t", {"OpenQA_data.tar.gz": tarred(OPENQA)}, "quasar-t", "What does train like?",
               "train likes fish .", (18, 18, 18)),
    "wiki": ("wiki-auto", SIMPLE, "wiki-auto", "Easy", "Hard", (40, 0, 0)),
    "ccm_tar": ("commonsense", {"commonsense_conversation_dataset.tar.gz": tarred(CCM)}, "commonsense", "fine 0",
                "how are train ?", (40, 40, 40)),
    "ccm_lines": ("commonsense", CCM, "commonsense", "fine 0", "how are train ?", (40, 40, 40)),
}  # fmt: skip


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_every_file_set_is_converted_into_files_that_the_catalog_reads(tmp_path, capsys, form: str) -> None:
    name, files, row, text, beside, sizes = FORMS[form]
    source = put(tmp_path / "from", files)
    fetch.main([name, "--from", str(source), "--data_dir", str(tmp_path / "data")])
    printed = capsys.readouterr().out
    for split, n in zip(SPLITS, sizes, strict=True):
        assert (f"{split} {n:,}" in printed) == (n > 0)
    if form == "sst":  # three sentences: too few to cut anything off
        assert load(DataOptions(dataset_name="sst", data_dir=str(tmp_path / "data"))).test.texts == ["So/so."]
    corpus: Corpus = load(DataOptions(dataset_name=row, data_dir=str(tmp_path / "data")))
    assert all(len(split) for split in corpus.splits.values())
    if form == "sst":
        assert corpus.train.texts == ["A fine café ( really )."] and corpus.valid.labels == [0]
        return
    assert corpus.train.texts[0].startswith(text)
    found = corpus.train.sources or corpus.train.labels
    if isinstance(beside, str):
        assert corpus.train.sources is not None and corpus.train.sources[0].startswith(beside)
    elif beside is not None:
        assert corpus.train.labels is not None and set(corpus.train.labels) == {0, 1, 2, 3}
    else:
        assert found is None
    with pytest.raises(SystemExit):  # never written over
        fetch.main([name, "--from", str(source), "--data_dir", str(tmp_path / "data")])
    assert "already exists: remove it" in capsys.readouterr().err


def test_a_failed_conversion_leaves_no_files(tmp_path, capsys) -> None:
    bad = {**PAIRS, "test.jsonl": jsonl([{"src": "a", "trg": "b"}, {"src": "a"}])}
    with pytest.raises(SystemExit):
        fetch.main(["qqp", "--from", str(put(tmp_path / "from", bad)), "--data_dir", str(tmp_path / "data")])
    assert "test.jsonl, line 2: expected two texts, src and trg" in capsys.readouterr().err
    assert not list((tmp_path / "data/qqp").glob("*.jsonl"))


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("qqp", {"other.txt": b"x"}, "does not contain the files of qqp: give a folder with quora_dup"),
        ("qqp", {"quora_duplicate_questions.tsv": b"a\tb\n1\t2\n"}, "has no column question1, only a, b"),
        ("e2e", {"e2e-dataset.zip": zipped(**{"trainset.csv": b"mr,ref\n"})}, "nothing to write into .*src1_train.txt"),
        ("quasar-t", {"OpenQA_data.tar.gz": tarred(OPENQA)[:200]}, "is not a complete archive"),
        ("wiki-auto", {"train.src": b"a\nb\n", "train.dst": b"a\n"}, "different numbers of lines"),
        ("commonsense", {**CCM, "trainset.txt": b"{}\n"}, "trainset.txt, line 1: expected post and response"),
        ("sst", {"stanfordSentimentTreebank.zip": zipped(**{**SST, "dictionary.txt": b"a|9"})}, "3 sentences have"),
        ("ag_news", {**AG, "train.csv": b"9,a,b\n"}, "train.csv, line 1: expected class, title, description"),
        ("wmt14", {**WMT, "train-0000.parquet": parquet([{"x": 1}])}, "has no column de, only x"),
    ],
)  # fmt: skip
def test_wrong_files_raise_one_line(tmp_path, capsys, name: str, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(SystemExit):
        fetch.main([name, "--from", str(put(tmp_path / "from", files)), "--data_dir", str(tmp_path / "data")])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and re.search(message, errors[0]), errors


# ------------------------------------------------------------------------------------------------ network


class Server(http.server.BaseHTTPRequestHandler):
    """Serves files of a dictionary, with ranges; some responses break off, some redirect."""

    files: dict[str, bytes] = {}
    asked: list[tuple[str, str | None]] = []
    breaks: set[str] = set()

    def do_GET(self) -> None:
        name, wanted = self.path.lstrip("/"), self.headers.get("Range")
        self.asked.append((name, wanted))
        if name == "elsewhere":
            self.send_response(302)
            self.send_header("Location", "http://example.org/x")
            self.end_headers()
            return
        if name not in self.files:
            self.send_error(404)
            return
        start = int(re.findall(r"\d+", wanted)[0]) if wanted else 0
        content = self.files[name][start:]
        if wanted and not content:
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if name in self.breaks else content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Server.files, Server.asked, Server.breaks = {}, [], set()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_an_interrupted_download_is_resumed(server, tmp_path) -> None:
    content = os.urandom(3_000_000)
    Server.files, Server.breaks = {"a.bin": content}, {"a.bin"}
    remote = RemoteFile("a.bin", f"{server}/a.bin", hashlib.sha256(content).hexdigest())
    with pytest.raises(UserError, match=r"a\.bin cannot be downloaded.*(IncompleteRead|interrupted).*--from"):
        fetch.download(remote, tmp_path)
    kept = (tmp_path / "a.bin.partial").stat().st_size
    assert 0 < kept < len(content) and not (tmp_path / "a.bin").exists()
    Server.breaks = set()
    assert fetch.download(remote, tmp_path).read_bytes() == content
    assert Server.asked[-1] == ("a.bin", f"bytes={kept}-")
    fetch.download(remote, tmp_path)
    assert len(Server.asked) == 2  # it existed: not requested again
    (tmp_path / "a.bin").rename(tmp_path / "a.bin.partial")  # killed before it was renamed
    assert fetch.download(remote, tmp_path).read_bytes() == content


def test_checksums_are_compared_or_recorded(server, tmp_path, capsys) -> None:
    Server.files = {"a.txt": b"one"}
    with pytest.raises(UserError, match="has SHA-256 7692c3ad.* but the known checksum is 000: remove the file"):
        fetch.download(RemoteFile("a.txt", f"{server}/a.txt", "000"), tmp_path / "known")
    unknown = RemoteFile("a.txt", f"{server}/a.txt")
    fetch.download(unknown, tmp_path)
    assert "its checksum was unknown, and is now recorded in" in capsys.readouterr().err
    checked = subprocess.run(["sha256sum", "-c", fetch.SUMS], cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    (tmp_path / "a.txt").write_text("two")
    with pytest.raises(UserError, match=r"the checksum in .*SHA256SUMS is 7692c3ad"):
        fetch.download(unknown, tmp_path)


def test_only_https_is_downloaded(server, tmp_path) -> None:
    for url in ("http://example.org/x", "ftp://example.org/x", "file:///etc/hostname"):
        with pytest.raises(UserError, match="is not https: refused"):
            fetch.download(RemoteFile("x", url), tmp_path)
    with pytest.raises(UserError, match="redirects to http://example.org/x, which is not https"):
        fetch.download(RemoteFile("x", f"{server}/elsewhere"), tmp_path)
    assert all(remote.url.startswith("https://") for row in DOWNLOADS.values() for remote in row.files)


def test_a_corpus_of_the_hub_is_downloaded_by_its_index(server, tmp_path, monkeypatch, capsys) -> None:
    index = "api/datasets/fancyzhx/ag_news/parquet/default"
    Server.files = {f"{s}.parquet": FORMS["ag_parquet"][1][f"{s}-0000.parquet"] for s in ("train", "test")}
    Server.files |= {f"{index}/{s}": json.dumps([f"{server}/{s}.parquet"]).encode() for s in ("train", "test")}
    monkeypatch.setenv("HF_ENDPOINT", server)
    fetch.main(["ag_news", "--data_dir", str(tmp_path)])
    assert "wrote train 40, test 40 rows" in capsys.readouterr().out
    assert len(load(DataOptions(dataset_name="ag_news", data_dir=str(tmp_path))).test) == 40
    Server.files[f"{index}/train"] = b"{}"
    with pytest.raises(UserError, match="lists no files"):
        fetch.shards(HubParquet("fancyzhx/ag_news", "default", ("train",)))


def test_a_missing_network_raises_an_error_of_one_line(tmp_path, monkeypatch, capsys) -> None:
    nowhere = RemoteFile("quora_duplicate_questions.tsv", "https://127.0.0.1:9/x")
    monkeypatch.setitem(DOWNLOADS, "qqp", replace(DOWNLOADS["qqp"], files=(nowhere,)))
    with pytest.raises(SystemExit):
        fetch.main(["qqp", "--data_dir", str(tmp_path)])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "cannot be downloaded" in errors[0] and "--from" in errors[0]
    with pytest.raises(SystemExit):
        fetch.main(["qpp"])
    assert "did you mean qqp" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ scripts


def test_every_corpus_has_a_script_with_a_dry_run(tmp_path, capsys) -> None:
    scripts = {path.stem for path in (ROOT / "scripts/data").glob("*.sh")}
    assert scripts == set(DOWNLOADS)
    for name, row in DOWNLOADS.items():
        spec = DATASETS[row.corpus or name]
        assert f"scripts/data/{name}.sh" in spec.how_to_get
        text = (ROOT / f"scripts/data/{name}.sh").read_text()
        assert f"\nfetch {name} " in text and "# Terms:" in text and spec.folders[0] in text
        fetch.main([name, "--dry_run", "--data_dir", str(tmp_path)])
        shown = capsys.readouterr().out
        assert shown.count("https://") >= 1 and spec.license in shown and str(tmp_path / spec.folders[0]) in shown
    assert not list(tmp_path.iterdir())


def test_a_script_from_any_directory(tmp_path) -> None:
    environment = {**os.environ, "USE_PYTHON": sys.executable, "DATA_DIR": str(tmp_path / "data")}
    source = put(tmp_path / "from", PAIRS)
    command = ["bash", str(ROOT / "scripts/data/commonsense.sh"), "--from", str(source)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data/commonsense/train.jsonl").read_bytes() == PAIRS["train.jsonl"]


@pytest.mark.parametrize(
    ("convert", "name", "content", "message"),
    [
        ("roc_tables", "roc.csv", b"sentence1,sentence2,sentence3,sentence4,sentence5\na,b,c,d,\xff\n", "not UTF-8"),
        ("roc_tables", "roc.csv", b"sentence1,sentence2\na,b\n", "no column sentence3"),
        ("ag_tables", "train.csv", b"1,a\n", "line 1: expected class"),
        ("quora", "quora.tsv", b"question1\tquestion2\tis_duplicate\na\n", "line 2: too few cells"),
        ("sst", "sst.zip", b"PK\x03\x04 damaged", "is not a complete archive"),
        ("conversation", "c.tar.gz", b"\x1f\x8b damaged", "is not a complete archive"),
        ("conversation", "c.tar.bz2", b"BZh9 damaged", "is not a complete archive"),
    ],
)
def test_damaged_source_files_are_refused_in_one_line(tmp_path, convert, name, content: bytes, message: str) -> None:
    from dataset_utils import convert as conversions

    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        for rows in getattr(conversions, convert)({name: tmp_path / name}).values():
            list(rows)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_lines_without_a_separator_are_no_treebank(tmp_path) -> None:
    import zipfile

    from dataset_utils import convert as conversions

    with zipfile.ZipFile(tmp_path / "sst.zip", "w") as archive:
        for member in ("sentiment_labels", "dictionary", "datasetSplit", "datasetSentences"):
            archive.writestr(f"{member}.txt", "head\nno separator\n")
    with pytest.raises(UserError, match=r"sst\.zip is not in the format of the treebank"):
        conversions.sst({"sst.zip": tmp_path / "sst.zip"})


def test_a_damaged_list_of_checksums_is_read_as_far_as_it_goes(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / fetch.SUMS).write_bytes(b"no separator\n\xff\n")
    remote = fetch.RemoteFile("a.txt", "https://localhost/a.txt")
    assert fetch.download(remote, tmp_path) == tmp_path / "a.txt"
    assert fetch.download(remote, tmp_path) == tmp_path / "a.txt"
