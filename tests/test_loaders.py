"""No file of a user, a run or the hub can run code: every call that loads one has the arguments that forbid it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("dataset_utils", "diffusion", "evaluation", "latent_models", "model", "pipelines", "scripts", "utils")
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
RUN_CODE = {"eval", "exec", "compile", "__import__"}
UNSAFE = {  # dotted ends of calls that are never safe
    "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "torch.hub.load", "torch.jit.load",
    "torch.package.PackageImporter", "evaluate.load", "numpy.fromregex", "pd.read_pickle", "pandas.read_pickle",
}  # fmt: skip


def files() -> Iterator[Path]:
    yield from ROOT.glob("*.py")
    for folder in (*FOLDERS, "benchmarks"):
        yield from (path for path in (ROOT / folder).rglob("*.py") if "records" not in path.parts)


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def constant(call: ast.Call, name: str) -> object:
    """The value of a keyword that is written out; "absent" without it."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value.value if isinstance(keyword.value, ast.Constant) else "computed"
    return "absent"


def forbids_remote_code(call: ast.Call, function: ast.FunctionDef | ast.AsyncFunctionDef | None) -> bool:
    """trust_remote_code=False in the call, or in the dict of the same function that is passed by **."""
    if constant(call, "trust_remote_code") is False:
        return True
    passed = {k.value.id for k in call.keywords if k.arg is None and isinstance(k.value, ast.Name)}
    if not passed or function is None:
        return False
    source = ast.unparse(function)
    parameters = {argument.arg for argument in function.args.args}  # the caller has made the dict
    forbidden = "'trust_remote_code': False" in source or "trust_remote_code=False" in source
    return forbidden or passed <= parameters


def problems(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    found = []

    def report(node: ast.AST, what: str) -> None:
        found.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}: {what}")

    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                if name.partition(".")[0] in PICKLES:
                    report(node, f"imports {name}, whose files can run code")
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
            value = node.value.value if isinstance(node.value, ast.Constant) else None
            found += (
                [] if value is False else [f"{path.relative_to(ROOT)}:{node.value.lineno}: {node.arg} is not False"]
            )
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        head, _, last = name.rpartition(".")
        if name in RUN_CODE or any(name == end or name.endswith(f".{end}") for end in UNSAFE):
            report(node, f"{name} can run code of a file")
        if name in ("torch.load", "load_checkpoint") and constant(node, "weights_only") is not True:
            report(node, "torch.load without weights_only=True")
        if name in ("np.load", "numpy.load") and constant(node, "allow_pickle") not in (False, "absent"):
            report(node, "np.load with allow_pickle")
        if last == "load" and head == "yaml":
            loader = dotted(node.args[1]) if len(node.args) > 1 else ""
            safe = [c for c in ast.walk(tree) if isinstance(c, ast.ClassDef) and c.name == loader]
            if not any(dotted(base) in ("yaml.SafeLoader", "yaml.CSafeLoader") for c in safe for base in c.bases):
                report(node, "yaml.load without a SafeLoader")
        if last in ("from_pretrained", "from_config", "pipeline") and head.rpartition(".")[2].startswith("Auto"):
            if last == "from_config":  # it has the classes of transformers only, unless trust_remote_code is given
                continue
            inside = [f for f in functions if f.lineno <= node.lineno <= (f.end_lineno or 0)]
            inner = max(inside, key=lambda f: f.lineno) if inside else None
            if not forbids_remote_code(node, inner):
                report(node, f"{name} without trust_remote_code=False")
        if last in ("run", "Popen", "call", "check_call", "check_output") and constant(node, "shell") is True:
            report(node, "a command of a shell")
    return found


def test_every_loader_forbids_code():
    paths = list(files())
    assert len(paths) > 150
    assert [problem for path in paths for problem in problems(path)] == []


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from joblib import load", "torch.load(p)", "torch.load(p, weights_only=False)", "eval(text)",
     "np.load(p, allow_pickle=True)", "AutoModel.from_pretrained(p)", "yaml.load(text, yaml.Loader)", "os.system(c)",
     "transformers.AutoTokenizer.from_pretrained(p, trust_remote_code=True)", "subprocess.run(c, shell=True)",
     "datasets.load_dataset(p, trust_remote_code=True)", "evaluate.load('bleu')"],
)  # fmt: skip
def test_the_check_finds_what_it_should(line, tmp_path, monkeypatch):
    (tmp_path / "f.py").write_text(line)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert problems(tmp_path / "f.py")
