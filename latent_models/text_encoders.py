"""A frozen text encoder with its tokenizer: tokens to states. Any family of transformers will do: encoders (BERT,
ModernBERT, MiniLM), the encoder of an encoder-decoder (T5, BART), a layer of a causal model (GPT-2, Llama).

Unlike latent_models/language_models, it has no decoder and never trains. Shapes: B texts, T tokens, d channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latent_models.families import FAMILIES
from latent_models.half_precision import HalfPrecisionCopy, half_dtype
from latent_models.language_models import stable_hash
from latent_models.tokenizers.special_ids import largest_id
from utils.checkpoints import fingerprint
from utils.errors import UserError, is_of_a_library, library_message
from utils.hub import hub_kwargs, quiet_transformers
from utils.local_models import check_intact
from utils.tokenizer_fingerprint import tokenizer_rules

FLAG = "--encoder_model"
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")  # the first positions are of padding


class TextEncoder(nn.Module):
    """An encoder that stays frozen and in eval mode, even if the module around it trains.

    It has the attributes of a LanguageModel that reading of texts needs: model, tokenizer, name, dim, pad_id,
    max_length, language, encode, fingerprint, save_pretrained.
    """

    language: str | None = None  # no language codes
    frozen = True

    def __init__(self, model: Any, tokenizer: Any, name: str, layer: int | None = None, flag: str = FLAG) -> None:
        """model: a model of transformers without a head. name: folder or hub id, for messages.

        layer: the layer whose states are read: 0 for the embeddings, 1 for the first layer, -1 for the last one; None:
        the output of the model, after its last norm. flag: the flag that named the model, for messages. Raises
        UserError where there is no such layer.
        """
        super().__init__()
        tokenizer.split_special_tokens = True  # "[SEP]" in a text is text
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token  # masked, so any token will do
        tokenizer.padding_side = "right"  # the positions of a causal model count from the first token
        self.model, self.tokenizer, self.name, self.flag = model, tokenizer, name, flag
        self.is_encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
        self.is_causal = not self.is_encoder_decoder and _is_causal(model.config)
        self.dim: int = _width(model.config)
        self.pad_id: int = tokenizer.pad_token_id
        self.layer = self._check_layer(layer)
        self._half = HalfPrecisionCopy("text encoder")
        model.requires_grad_(False)
        model.eval()

    @classmethod
    def from_pretrained(
        cls, name: str, *, layer: int | None = None, meta: bool = False, flag: str = FLAG
    ) -> TextEncoder:
        """Load an encoder from a local folder or the hub, in float32.

        layer: see __init__. meta: on the meta device, without weights, for a dry run. flag: the flag that named it, for
        messages. Raises UserError, in one line, if there is no such model, weights are missing, or the tokenizer is of
        another one.
        """
        import transformers

        path = Path(name)
        if path.is_dir() and not (path / "config.json").is_file():
            raise UserError(f"{flag} {name} holds no config.json: give the folder of a Hugging Face model")
        if not path.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1 or len(name) > 200):
            raise UserError(f"{flag} {name}: there is no such folder: give a folder or a hub id")
        check_intact(path, flag)
        where: dict[str, Any] = {"trust_remote_code": False} | ({} if path.is_dir() else hub_kwargs())
        try:
            with quiet_transformers():
                config = transformers.AutoConfig.from_pretrained(name, **where)
                tokenizer = transformers.AutoTokenizer.from_pretrained(name, **where)
                model = _empty(config) if meta else _with_weights(name, config, flag, where)
        except BaseException as error:
            if isinstance(error, UserError) or not is_of_a_library(error):
                raise
            hint = "the folder of a Hugging Face model with its tokenizer"
            hint += "" if path.is_dir() else ", or a hub id, where the hub is reachable"
            raise UserError(f"{flag} {name} cannot be loaded ({library_message(error)}): give {hint}") from error
        _check_tokenizer(tokenizer, config, f"{flag} {name}")
        return cls(model, tokenizer, name, layer, flag)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write an ordinary Hugging Face folder of model and tokenizer."""
        with quiet_transformers():
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def train(self, mode: bool = True) -> TextEncoder:
        """Stays in eval mode: the vectors of a text are the same in training."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    @property
    def encoder(self) -> nn.Module:
        """The part that encodes texts: without the decoder of an encoder-decoder."""
        return self.model.get_encoder() if self.is_encoder_decoder else self.model

    @property
    def max_length(self) -> int | None:
        """Longest text in tokens, special tokens included, or None where there is no limit."""
        config = self.model.config
        found = [getattr(config, key, None) for key in ("max_position_embeddings", "n_positions")]
        if config.model_type in FAMILIES:  # T5 names a number of positions, and has none
            found = [FAMILIES[config.model_type].max_length(config)]
        elif config.model_type in OFFSET_POSITIONS and found[0]:
            found = [found[0] - (config.pad_token_id or 0) - 1]
        return next((limit for limit in found if limit), None)

    @property
    def num_layers(self) -> int:
        """Layers of the encoder; the states of layer 0 are the embeddings."""
        config = self.model.config
        keys = ("encoder_layers", "num_layers") if self.is_encoder_decoder else ("num_hidden_layers", "n_layer")
        return int(next(getattr(config, key) for key in keys if getattr(config, key, None)))

    @torch.no_grad()
    def encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """(B, T) ids, padded on the right, and their mask -> states (B, T, d) without gradient.

        Padding changes no state of a token. Autocast is as the caller has set it, unless this family overflows in it.
        """
        with self._stable_precision():
            every = {"output_hidden_states": True} if self.layer is not None else {}
            if not self.is_encoder_decoder and self.is_causal:
                every["use_cache"] = False
            dtype = half_dtype(self.device.type)
            encoder = self.encoder if dtype is None else self._half.of(self.encoder, dtype)
            with first_layers(encoder, self.num_layers, self.layer):
                out = encoder(input_ids=input_ids, attention_mask=mask.long(), **every)
        return out.last_hidden_state if self.layer is None else out.hidden_states[self.layer]

    def fingerprint(self) -> str:
        """Hash of the weights, the layer, and the vocabulary, merges and normalizer of the tokenizer."""
        parts = [f"{k}\0{v}" for k, v in sorted(self.tokenizer.get_vocab().items())]
        rules = tokenizer_rules(self.tokenizer)
        parts += [rules] if rules else []
        parts += [] if self.layer is None else [f"layer {self.layer}"]
        table = torch.tensor([stable_hash(part) for part in parts], dtype=torch.int64)
        return fingerprint({"vocabulary": table, **self.model.state_dict()})

    def check_fingerprint(self, expected: str | None, run: Path) -> None:
        """UserError if a run was trained with another encoder. expected: its fingerprint, None if unknown."""
        if expected and self.fingerprint() != expected:
            raise UserError(
                f"{self.name} is not the encoder that {run} was trained with (other weights, layer or vocabulary): "
                f"give the folder of that one with {self.flag}"
            )

    def _check_layer(self, layer: int | None) -> int | None:
        """The number of a layer, counted from the front."""
        if layer is None:
            return None
        count = self.num_layers
        if not -count - 1 <= layer <= count:
            raise UserError(
                f"{self.flag.replace('_model', '_layer')} {layer}: {self.name} has {count} layers: give 0 (its "
                f"embeddings) to {count}, or -1 for the last one"
            )
        return layer % (count + 1)

    def _stable_precision(self) -> AbstractContextManager[Any]:
        """Disables autocast where the states of this family overflow in its dtype."""
        family, kind = FAMILIES.get(self.model.config.model_type), self.device.type
        if family and torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) in family.unsafe_dtypes:
            return torch.autocast(kind, enabled=False)
        return nullcontext()


@contextmanager
def first_layers(encoder: nn.Module, count: int, read: int | None) -> Iterator[None]:
    """Compute no more layers of an encoder than it takes to read the states of layer `read`; None: all of them.

    count: its layers. The one after `read` stays, since a norm follows the last one. An encoder whose layers are in no
    list of their own, or in more than one, computes all.
    """
    found = []
    if read is not None and read + 1 < count:
        found = [part for part in encoder.modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    if read is None or len(found) != 1:
        yield
        return
    layers, every = found[0], found[0]._modules
    layers._modules = dict([*every.items()][: read + 1])
    try:
        yield
    finally:
        layers._modules = every


def _is_causal(config: Any) -> bool:
    """Whether the tokens of a model attend to earlier ones only."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    if config.model_type in MASKED:  # BERT and its kin may be decoders, too
        return bool(getattr(config, "is_decoder", False))
    return config.model_type in CAUSAL


def _width(config: Any) -> int:
    """Channels of a state."""
    return int(
        next(getattr(config, key) for key in ("d_model", "hidden_size", "n_embd", "dim") if hasattr(config, key))
    )


def _auto_class(config: Any) -> Any:
    """What loads a model: of an encoder that was saved without its decoder, such as GTR's of T5, that encoder alone."""
    import transformers

    saved_as = next(iter(getattr(config, "architectures", None) or ()), "")
    return transformers.AutoModelForTextEncoding if saved_as.endswith("EncoderModel") else transformers.AutoModel


def _empty(config: Any) -> Any:
    with torch.device("meta"):
        return _without_pooler(_auto_class(config).from_config(config, dtype=torch.float32))


def _with_weights(name: str, config: Any, flag: str, where: dict[str, Any]) -> Any:
    """UserError for missing weights, which transformers would silently initialize at random."""
    model, found = _auto_class(config).from_pretrained(
        name, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **where
    )
    model = _without_pooler(model)
    missing = sorted(set(found["missing_keys"]) & {key for key, _ in model.named_parameters()})
    if missing:
        raise UserError(f"{flag} {name} lacks {len(missing)} weights of its model, such as {missing[0]}: name another")
    if found["mismatched_keys"]:
        raise UserError(
            f"{flag} {name}: the shape of {sorted(found['mismatched_keys'])[0][0]} is not that of its config.json: "
            "weights and config.json are not of the same model"
        )
    return model


def _without_pooler(model: Any) -> Any:
    """The model without the layer that BERT's classifier reads: here it is unused, and many checkpoints lack it."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def _check_tokenizer(tokenizer: Any, config: Any, what: str) -> None:
    """UserError if a tokenizer does not belong to the model."""
    vocabulary = tokenizer.get_vocab()
    # where the files of a tokenizer are absent, transformers silently makes one of a few special tokens
    if largest_id(tokenizer, config.vocab_size) >= config.vocab_size or len(vocabulary) < config.vocab_size / 2:
        raise UserError(
            f"the tokenizer of {what} has {len(vocabulary)} tokens, but the model's vocabulary holds "
            f"{config.vocab_size}: its files are absent or of another model"
        )
