"""Measure the size of the code, the number of flags, and the number of files that one route crosses.

    python benchmarks/structure.py --checkout OLD --run OLD_RUNS/latents --json before.json
    python benchmarks/structure.py --checkout .   --run RUNS/latents     --json after.json

--run is a trained run of that checkout on the latents of an autoencoder, such as benchmarks/same_results.py trains:

    lines and files     of Python outside tests/, by folder
    flags               of --help, by program, and the number of different ones
    import closure      our files that an import of the module of DiffusionStep loads, without imports inside functions
    four routes         our files in which a function is called
        training step   while one call of DiffusionStep runs
        evaluation      from the entry script to the sampler, and while TextGenerator.sample runs; also our calls
                        between TextGenerator.sample and the sampler
        flag            files that name --sampler: declare it, name it as a string, or read it from the settings
        saved run       while a run folder becomes a latent space; and in how many of them a function receives the flags

Routes are traced: the programs of the checkout run with a profiler. How long: two minutes.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("dataset_utils", "diffusion", "evaluation", "latent_models", "model", "pipelines", "utils")
PROGRAMS = (
    "train_text_diffusion.py", "train_latent_model.py", "-m latent_models.pretraining", "-m pipelines.train_classifier",
)  # fmt: skip
DRAFT_PROGRAMS = ("train_draft_model", "train_drafter")  # after and before the redesign
# Lower packages first: a call from one into a later one is a climb.
LEVELS = {
    "utils": 0,
    "diffusion": 0,
    "dataset_utils": 1,
    "model": 1,
    "evaluation": 1,
    "latent_models": 2,
    "pipelines": 3,
}
LOADERS = ("load_space", "load_latent_space", "build_space")  # the function that turns a run folder into a latent space

TRACER = r"""
import json, os, runpy, sys
root, out, triggers, script, *argv = sys.argv[1:]
triggers = set(triggers.split(","))
sys.path.insert(0, root)
found, active = {}, []

def ours(frame):
    name = frame.f_code.co_filename
    return name[len(root) + 1:] if name.startswith(root + os.sep) and "/.venv/" not in name else None

def trace(frame, event, _):
    if event == "call":
        file = ours(frame)
        if file is None or frame.f_code.co_name == "<module>":
            return
        name = frame.f_code.co_qualname
        if active:
            caller = frame.f_back
            while caller is not None and ours(caller) is None:
                caller = caller.f_back
            route = found[active[-1][0]]
            route["calls"].append([ours(caller) if caller is not None else None, file])
            if any(type(value).__name__ == "Settings" for value in frame.f_locals.values()):
                route["with flags"].append(file)
            if name.startswith("sample_") and "depth" not in route and file.startswith("diffusion/"):
                above, names = frame.f_back, []
                while above is not active[-1][1]:
                    if ours(above): names.append(above.f_code.co_qualname)
                    above = above.f_back
                route["depth"] = names
        elif name in triggers and name not in found:
            stack, above = [], frame.f_back
            while above is not None:
                if ours(above): stack.append(ours(above))
                above = above.f_back
            found[name] = {"stack": stack, "calls": [[None, file]], "with flags": []}
            active.append((name, frame))
    elif event == "return" and active and frame is active[-1][1]:
        active.pop()

sys.argv = [script, *argv]
sys.setprofile(trace)
try:
    runpy.run_path(os.path.join(root, script), run_name="__main__")
except SystemExit as end:
    if end.code: raise
finally:
    sys.setprofile(None)
    json.dump(found, open(out, "w"))
"""


def python_files(checkout: Path) -> list[Path]:
    """Every tracked Python file outside tests/, relative to the checkout."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=checkout, capture_output=True, text=True, check=True)
    return [Path(name) for name in listed.stdout.split() if not name.startswith("tests/")]


def size(checkout: Path) -> dict[str, dict[str, int]]:
    """Lines and files by folder; files of the top level under "."."""
    lines: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for path in python_files(checkout):
        folder = path.parts[0] if len(path.parts) > 1 else "."
        lines[folder] += (checkout / path).read_text(encoding="utf-8").count("\n")
        files[folder] += 1
    return {folder: {"lines": lines[folder], "files": files[folder]} for folder in sorted(files)}


def environment(checkout: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive",
            "WANDB_MODE": "disabled"}  # fmt: skip


def flags(checkout: Path) -> dict[str, Any]:
    """The number of flags of each program, and the total number of different flags."""
    draft = next(p for p in DRAFT_PROGRAMS if list(checkout.glob(f"pipelines/**/{p}.py")))
    module = str(next(checkout.glob(f"pipelines/**/{draft}.py")).relative_to(checkout))[:-3].replace("/", ".")
    counts: dict[str, int] = {}
    names: set[str] = set()
    for program in (*PROGRAMS, f"-m {module}"):
        command = [sys.executable, *program.split(), "--help"]
        printed = subprocess.run(command, cwd=checkout, env=environment(checkout), capture_output=True, text=True)
        own = set(re.findall(r"^  --(\w+)", printed.stdout.split("accepted without effect")[0], re.MULTILINE))
        counts[program] = len(own)
        names |= own
    return {"by program": counts, "in all": len(names)}


def module_file(checkout: Path, name: str) -> Path | None:
    base = checkout / name.replace(".", "/")
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def imports(checkout: Path, path: Path) -> set[Path]:
    """Our files that importing a file loads directly; without imports under `if TYPE_CHECKING` and in functions."""
    found: set[Path] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.split(".")[0] in FOLDERS and (file := module_file(checkout, name)):
                found.add(file)
    return found


def import_closure(checkout: Path) -> list[str]:
    """Files that the module of DiffusionStep imports, directly or not, and itself, without empty __init__ files."""
    start = next(
        checkout / path for path in python_files(checkout)
        if path.parts[0] == "pipelines" and "\nclass DiffusionStep" in (checkout / path).read_text(encoding="utf-8")
    )  # fmt: skip
    seen, waiting = set(), [start]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += imports(checkout, path)
    return sorted(str(path.relative_to(checkout)) for path in seen if path.stat().st_size > 0)


def flag_files(checkout: Path, flag: str = "sampler") -> dict[str, list[str]]:
    """Files that name a flag, and those among them that name it as a string."""
    settings = "settings|config|sampling|options|o|s"
    anywhere = re.compile(rf"""\b(?:{settings})\.{flag}\b|["']{flag}["']|^    {flag}\s*:""", re.MULTILINE)
    quoted = re.compile(rf"""["']{flag}["']""")
    own = [path for path in python_files(checkout) if path.parts[0] in (*FOLDERS, "train_text_diffusion.py")]
    texts = {str(path): (checkout / path).read_text(encoding="utf-8") for path in own}
    return {
        "files": [path for path, text in texts.items() if anywhere.search(text)],
        "files with a string": [path for path, text in texts.items() if quoted.search(text)],
    }


def traced(checkout: Path, triggers: list[str], argv: list[str]) -> dict[str, Any]:
    """Run train_text_diffusion.py of the checkout; what was called while each trigger ran for the first time."""
    with tempfile.TemporaryDirectory() as folder:
        out, script = Path(folder) / "trace.json", Path(folder) / "tracer.py"
        script.write_text(TRACER)
        command = [sys.executable, str(script), str(checkout), str(out), ",".join(triggers), "train_text_diffusion.py"]
        done = subprocess.run(
            [*command, *argv], cwd=checkout, env=environment(checkout), capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(
                f"train_text_diffusion.py {' '.join(argv)} ended with {done.returncode}:\n{done.stderr[-2000:]}"
            )
        return json.loads(out.read_text())


def summary(route: dict[str, Any], *, stack: bool = False) -> dict[str, Any]:
    """Files that a route crosses, in the order of their first call, changes of file, and climbs to a higher package."""
    calls = route["calls"]
    files = list(dict.fromkeys([*(reversed(route["stack"]) if stack else ()), *(file for _, file in calls)]))

    def level(file: str | None) -> int:
        return LEVELS.get((file or "").split("/")[0], 9)

    climbs = sum(level(caller) < level(file) for caller, file in calls if caller)
    return {
        "files": len(files),
        "climbs": climbs,
        "files that receive the flags": sorted(set(route["with flags"])),
        "crossed": files,
        **({"calls before the sampler": route["depth"]} if "depth" in route else {}),
    }


def routes(checkout: Path, run: Path) -> dict[str, Any]:
    """The traced routes."""
    with tempfile.TemporaryDirectory() as folder:
        saved = json.loads((run / "args.json").read_text())
        corpus = f"--dataset_name {saved['dataset_name']} --data_dir {saved['data_dir']} --max_seq_len 32"
        parts = f"--enc_dec_model {saved['enc_dec_model']} --latent_model_path {saved['latent_model_path']}"
        training = (
            f"{corpus} {parts} --self_condition --tx_dim 64 --tx_depth 2 --num_train_steps 1 --num_samples 1"
            f" --device cpu --sampling_timesteps 2 --decoding greedy --output_dir {folder}/trained"
        )
        evaluation = (
            f"--eval --resume_dir {run} --num_samples 4 --sampling_timesteps 4 --decoding greedy --device cpu"
            f" --sampler ddpm --output_dir {folder}/evaluated"
        )
        step = traced(checkout, ["DiffusionStep.__call__"], training.split())
        sampled = traced(checkout, ["TextGenerator.sample"], evaluation.split())
        loaded = traced(checkout, list(LOADERS), evaluation.split())
    return {
        "training step": summary(step["DiffusionStep.__call__"]),
        "evaluation": summary(sampled["TextGenerator.sample"], stack=True),
        "saved run": summary(next(iter(loaded.values()))),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, default=ROOT)
    parser.add_argument(
        "--run", type=Path, help="a diffusion run on latents; without it the traced routes are left out"
    )
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    given = parser.parse_args()
    checkout = given.checkout.resolve()
    sizes, closure, flag = size(checkout), import_closure(checkout), flag_files(checkout)
    result: dict[str, Any] = {
        "size": sizes,
        "lines": sum(row["lines"] for row in sizes.values()),
        "files": sum(row["files"] for row in sizes.values()),
        "flags": flags(checkout),
        "import closure": {"files": len(closure), "of": closure},
        "routes": {"flag": {name: len(files) for name, files in flag.items()} | {"crossed": flag["files"]}},
    }
    if given.run:
        result["routes"] |= routes(checkout, given.run.resolve())
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{result['lines']:,} lines in {result['files']} files; flags {result['flags']}")
    print(f"import closure of DiffusionStep: {len(closure)} files")
    for name, route in result["routes"].items():
        numbers = {key: len(value) if isinstance(value, list) else value for key, value in route.items()}
        print(f"{name}: {numbers}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
