"""A space whose texts are decoded by a language model that reads latents (latent_models/causal).

It wraps any space that encodes: frozen embeddings, latents of an autoencoder, states of an encoder. Its latents are
those of that space, scaled to mean 0 and variance 1. Shapes: B texts, L positions, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_models.causal.decoder_args import read_text_decoder_args
from latent_models.causal.decoders import decoder_class
from latent_models.causal.latent_decoder import LatentDecoder
from latent_models.causal.options import TextDecoderOptions
from latent_models.causal.sequences import prompt_ids
from latent_models.language_models import LanguageModel, stable_hash
from latent_models.pooling import make_pooling
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.compressed import CompressedSpace, copy_autoencoder
from latent_models.spaces.encoder_states import EncoderStatesSpace
from latent_models.spaces.options import SentenceOptions
from latent_models.spaces.scaling import LatentScaling
from latent_models.spaces.sentence import SentenceSpace, UnscaledSpace
from latent_models.text_encoders import TextEncoder
from utils.checkpoints import Checkpoint, fingerprint
from utils.errors import UserError
from utils.pretrained import best_or_newest, copy_weights, load_into, locate_model, options_from, relative_path
from utils.records import Batch, Latents
from utils.run_folder import write_json

AUTOENCODER = "autoencoder"  # folder below the run of a decoder: the autoencoder whose latents it reads


class DecodedSpace(LatentSpace):
    """The latents of another space, and a decoder that reads them noised: sqrt(1 - s^2) x0 + s eps, and s."""

    decoding_draws = True

    def __init__(
        self,
        space: LatentSpace,
        decoder: LatentDecoder,
        scaling: LatentScaling | None = None,
        *,
        noise: float = 0.3,
        max_length: int | None = None,
        source_length: int = 0,
    ) -> None:
        """scaling: of the latents of the space; None for a SentenceSpace, which has its own.

        noise: the level s of decoding where none is asked for. max_length: longest text in tokens of the decoder, start
        and end included; None: as many as each call of decode allows. source_length: longest source in tokens that the
        decoder reads; 0: it reads none.
        """
        super().__init__()
        assert (scaling is None) == isinstance(space, SentenceSpace), "latents are scaled once"
        self.space, self.decoder, self.outer_scaling = space, decoder, scaling
        self.noise, self.decoder_length, self.source_length = noise, max_length, source_length
        self.length, self.dim, self.variable_length = space.length, space.dim, space.variable_length
        self.one_latent_per_token = space.one_latent_per_token
        self.always_project = space.always_project

    @property
    def language_model(self) -> LanguageModel:
        """The model that reads texts: that of the wrapped space."""
        return self.space.language_model  # type: ignore[return-value]

    @property
    def writer_tokenizer(self) -> Any:
        """The tokenizer that gives texts their spelling: that of the decoder; latents may be read in lower case."""
        return self.decoder.lm.tokenizer

    @property
    def autoencoder(self) -> Any:
        """The autoencoder of compressed latents; None elsewhere."""
        return getattr(self.space, "autoencoder", None)

    @property
    def scaling(self) -> LatentScaling:
        """The scaling of the latents, whose statistics the decoder's program estimates before training."""
        found = self.outer_scaling if self.outer_scaling is not None else self.space.scaling
        assert isinstance(found, LatentScaling)
        return found

    @property
    def unscaled(self) -> UnscaledSpace:
        """The same space before its scaling: what is cached, so that both stages read one cache."""
        return UnscaledSpace(self)

    @property
    def trains(self) -> bool:
        """Whether the encoding trains with the decoder; then its latents cannot be cached before that."""
        return isinstance(self.space, SentenceSpace) and self.space.trains

    # ------------------------------------------------------------------------------------------ text to latents

    def encode(self, batch: Batch) -> Latents:
        return self.scale(self.encode_unscaled(batch))

    def encode_unscaled(self, batch: Batch) -> Latents:
        """Latents of the wrapped space before scaling; those of a frozen encoding in float32 also under autocast.

        So they are those of a cache: whitening, which divides by small deviations, would amplify other rounding.
        """
        space, kind = self.space, batch.input_ids.device.type
        trained = self.trains and any(p.requires_grad for p in space.parameters())
        with nullcontext() if trained else torch.autocast(kind, enabled=False):
            latents = space.encode_unscaled(batch) if isinstance(space, SentenceSpace) else space.encode(batch)
        return latents if batch.prompt is None else replace(latents, prompt=batch.prompt)

    def scale(self, latents: Latents) -> Latents:
        """Latents of encode_unscaled -> latents of this space."""
        mask = latents.mask if self.variable_length else None
        return replace(latents, x0=self.scaling(latents.x0, mask))

    def project(self, x0: Tensor) -> Tensor:
        unscaled = self.scaling.inverse(x0)
        projected = self.space.project(unscaled)
        return x0 if projected is unscaled else self.scaling(projected)  # the identity: no round trip

    @torch.no_grad()
    def encode_texts(self, texts: list[str], max_length: int) -> Latents:
        """Latents (B, L, D) of texts, truncated at max_length tokens."""
        model = self.language_model
        rows = model.tokenizer(texts, max_length=max_length, truncation=True)["input_ids"]
        longest = max([1, *(len(row) for row in rows)])
        ids = torch.tensor([row + [model.pad_id] * (longest - len(row)) for row in rows])
        mask = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
        return self.encode(Batch(ids, mask).to(model.device))

    # ------------------------------------------------------------------------------------------ latents to text

    def decode(
        self,
        latents: Latents,
        *,
        max_length: int = 64,
        decoder_noise: float | None = None,
        decoder_candidates: int = 1,
        draw_rows: tuple[int, int] | None = None,
        **generate: Any,
    ) -> list[str]:
        """Texts (B,) of latents, which are noised before the decoder reads them; see LatentDecoder.generate.

        max_length: longest text in tokens. decoder_noise: level s in [0, 1] of the noise; None: that of the run.
        decoder_candidates: so many texts are decoded, each with noise of its own, and the one is kept whose latents
        have the largest cosine with the given ones. draw_rows: (first, size): these rows are those from `first` on of a
        block of `size` texts, and get its random numbers, from the default generator of torch on the CPU.
        """
        if self.source_length and latents.prompt is None:
            raise UserError(
                "the decoder of this run reads the source of each text (--source_prompt), and there is none: give it"
            )
        s = self.noise if decoder_noise is None else decoder_noise
        x0, mask = latents.x0, latents.mask if self.variable_length else None
        longest = self.decoder_length or max_length
        first, size = draw_rows or (0, len(x0))
        found: list[list[str]] = []
        for _ in range(decoder_candidates):
            noise = torch.randn(size, *x0.shape[1:])[first : first + len(x0)].to(x0)
            z = (1 - s**2) ** 0.5 * x0 + s * noise
            level = x0.new_full((len(x0),), s)
            found.append(
                self.decoder.generate(
                    z, level, mask, max_length=longest, draw_rows=draw_rows, prompt=latents.prompt, **generate
                )
            )
        return found[0] if decoder_candidates == 1 else self._nearest(latents, found, max_length)

    def _nearest(self, latents: Latents, found: list[list[str]], max_length: int) -> list[str]:
        """Of the candidates of each text, the one whose latents are nearest; of equal ones the first."""
        wanted = latents.x0.float().flatten(1)
        cosines = [
            F.cosine_similarity(self.encode_texts(texts, max_length).x0.float().flatten(1), wanted) for texts in found
        ]
        best = torch.stack(cosines).argmax(0).tolist()
        return [found[k][i] for i, k in enumerate(best)]

    def prompts(self, sources: Sequence[str]) -> Tensor:
        """(n, P) int64: what the decoder reads of each source, -1 before it, on the CPU."""
        lm = self.decoder.lm
        rows = prompt_ids(lm.tokenizer, lm.boundaries, sources, len(sources), self.source_length)
        found = torch.full((len(rows), self.source_length + len(lm.boundaries.between)), -1)
        for row, head in zip(found, rows, strict=True):
            ids = head.ids[1:]  # the start comes before the latents
            row[len(row) - len(ids) :] = torch.tensor(ids, dtype=torch.long)
        return found

    def check_fill(self) -> None:
        raise UserError(
            "infilling: a decoder of --decoder_model writes from left to right and cannot decode around given words: "
            "use a run whose autoencoder has its own decoder, or token embeddings"
        )

    # ------------------------------------------------------------------------------------------ identity, files

    def fingerprint(self) -> str:
        return self.encoding_fingerprint()

    def encoding_fingerprint(self) -> str:
        if self.outer_scaling is None:
            return self.space.fingerprint()
        return self.space.encoding_fingerprint() + f"-{self.scaling.kind}-" + fingerprint(self.scaling.state_dict())

    def unscaled_fingerprint(self) -> str:
        """Hash of all that determines what encode_unscaled returns."""
        space = self.space
        return space.unscaled_fingerprint() if isinstance(space, SentenceSpace) else space.fingerprint()

    def train(self, mode: bool = True) -> DecodedSpace:
        """As for any module, but an encoding that does not train stays in eval mode."""
        super().train(mode)
        if not self.trains:
            self.space.eval()
        return self

    def check_decoder(self, saved: Mapping[str, Any], run: Path) -> None:
        """UserError if a run was trained with another language model as its decoder, before its weights are loaded.

        saved: args.json of the run. With --decoder_mode ft its checkpoint holds all weights of the language model.
        """
        expected, lm = saved.get("decoder_fingerprint"), self.decoder.lm
        if expected and saved.get("decoder_mode") != "ft" and causal_fingerprint(lm) != expected:
            raise UserError(
                f"{lm.name} is not the language model that {run} was trained with (other weights or vocabulary): give "
                "the folder of that one with --decoder_model"
            )

    @classmethod
    def from_pretrained(
        cls,
        folder: Path,
        *,
        device: torch.device | str = "cpu",
        meta: bool = False,
        encoder_model: str | None = None,
        decoder_model: str | None = None,
        language_model: str | None = None,
        fallback: str | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> DecodedSpace:
        """The frozen space of a run folder of pipelines.train_text_decoder, in eval mode.

        encoder_model, decoder_model, language_model: names or folders of the frozen models, where they are not where
        the run recorded them. fallback: used where the language model cannot be loaded. meta: on the meta device,
        without weights, for a dry run. checkpoint: one of the folder; None: the best, else the newest. Raises UserError
        if the folder holds no such decoder, or a model is not the one it was trained with.
        """
        saved = read_text_decoder_args(folder)
        space = _load_encoding(folder, saved, encoder_model, language_model, fallback, meta)
        found = decoder_model or locate_model(
            saved["decoder_model"], folder, saved.get("decoder_model_relative"), "--decoder_model"
        )
        made = new_decoded_space(space, saved, decoder_model=found, meta=meta)
        if meta:
            return made.requires_grad_(False)
        checkpoint = checkpoint or best_or_newest(folder)
        made.check_decoder(saved, folder)
        load_into(made, checkpoint)
        return made.to(device).requires_grad_(False).eval()


def new_decoded_space(
    space: LatentSpace, args: Mapping[str, Any], *, decoder_model: str | None = None, meta: bool = False, seed: int = 0
) -> DecodedSpace:
    """The space around an encoding one, with a decoder of the flags or of an args.json, which is still to train.

    args: values of TextDecoderOptions, latent_scaling, max_seq_len, and decoder_noise if it is set. decoder_model: name
    or folder of the language model, None for that of the flags.
    """
    options = options_from(TextDecoderOptions, args)
    longest = int(args["max_seq_len"])
    name = decoder_model or str(options.decoder_model)
    decoder = decoder_class(name).build(options, space.length, space.dim, longest, seed=seed, name=name, meta=meta)
    outer = None if isinstance(space, SentenceSpace) else LatentScaling(space.dim, args["latent_scaling"])
    noise = args.get("decoder_noise")
    made = DecodedSpace(
        space,
        decoder,
        outer,
        noise=options.max_latent_noise / 2 if noise is None else noise,
        max_length=longest,
        source_length=longest if options.source_prompt else 0,
    )
    return made.to("meta") if meta else made


def new_sentence_space(
    args: Mapping[str, Any], *, encoder_model: str | None = None, meta: bool = False
) -> SentenceSpace:
    """The space of frozen embeddings of the flags, or of an args.json; its scaling is still to be estimated.

    args: values of SentenceOptions. encoder_model: name or folder, None for that of the flags.
    """
    options = options_from(SentenceOptions, args)
    if options.encoder_model is None:
        raise UserError(
            "--latent_space sentence needs an encoder: add --encoder_model, a local folder (python -m "
            "latent_models.pretrained minilm-l6) or a hub id"
        )
    encoder = TextEncoder.from_pretrained(
        encoder_model or options.encoder_model, layer=options.encoder_layer, meta=meta
    )
    limit, longest = encoder.max_length, args.get("max_seq_len")
    if limit is not None and longest is not None and longest > limit:
        raise UserError(
            f"--max_seq_len {longest} is more than the {limit} tokens that {encoder.name} can encode: give {limit} or "
            "less"
        )
    pooling = make_pooling(options.pooling, options.num_sentence_latents, encoder.dim, is_causal=encoder.is_causal)
    space = SentenceSpace(encoder, pooling, LatentScaling(encoder.dim, options.latent_scaling))
    return space.to("meta") if meta else space


def _load_encoding(
    folder: Path,
    saved: Mapping[str, Any],
    encoder_model: str | None,
    language_model: str | None,
    fallback: str | None,
    meta: bool,
) -> LatentSpace:
    """The space whose latents a saved decoder reads."""
    return ENCODINGS[saved["latent_space"]](folder, saved, encoder_model, language_model, fallback, meta)


def _load_sentence(
    folder: Path, saved: Mapping[str, Any], encoder_model: str | None, _: str | None, __: str | None, meta: bool
) -> LatentSpace:
    found = encoder_model or locate_model(
        saved["encoder_model"], folder, saved.get("encoder_model_relative"), "--encoder_model"
    )
    space = new_sentence_space({**saved, "max_seq_len": None}, encoder_model=found, meta=meta)
    if not meta:
        space.language_model.check_fingerprint(saved.get("encoder_fingerprint"), folder)
    return space


def _load_compressed(
    folder: Path, _: Mapping[str, Any], __: str | None, language_model: str | None, fallback: str | None, meta: bool
) -> LatentSpace:
    return CompressedSpace.from_pretrained(
        folder / AUTOENCODER, language_model=language_model, fallback=fallback, meta=meta
    )


def _load_states(
    folder: Path, saved: Mapping[str, Any], _: str | None, language_model: str | None, fallback: str | None, meta: bool
) -> LatentSpace:
    try:
        name = language_model or locate_model(saved["enc_dec_model"], folder, saved.get("enc_dec_model_relative"))
        model = LanguageModel.from_pretrained(name, language=saved.get("language"), meta=meta)
    except UserError:
        if fallback is None:
            raise
        model = LanguageModel.from_pretrained(fallback, language=saved.get("language"), meta=meta)
    if not meta:
        model.check_fingerprint(saved.get("language_model_fingerprint"), folder)
    return EncoderStatesSpace(model, saved["max_seq_len"])


Load = Callable[[Path, Mapping[str, Any], "str | None", "str | None", "str | None", bool], LatentSpace]
ENCODINGS: dict[str, Load] = {  # by latent_space of the decoder's run
    "sentence": _load_sentence,
    "compressed": _load_compressed,
    "states": _load_states,
}


def causal_fingerprint(lm: Any) -> str:
    """Hash of the pretrained weights of a decoder's language model, without adapters, and of its vocabulary."""
    parts = [f"{k}\0{v}" for k, v in sorted(lm.tokenizer.get_vocab().items())]
    table = torch.tensor([stable_hash(part) for part in parts], dtype=torch.int64)
    own = {name.replace(".base_layer", ""): x for name, x in lm.model.state_dict().items() if ".lora_" not in name}
    return fingerprint({"vocabulary": table, **own})


def text_decoder_metadata(space: DecodedSpace, folder: Path) -> dict[str, Any]:
    """Entries of args.json by which a run of the decoder finds its frozen models again, and refuses other ones.

    To be computed before the decoder trains: with --decoder_mode ft its weights change. folder: the run folder.
    """
    reader, lm = space.language_model, space.decoder.lm
    found = {
        "decoder_model_relative": relative_path(lm.name, folder),
        "decoder_fingerprint": causal_fingerprint(lm),
        "decoder_noise": space.noise,
        "language": reader.language,
    }
    if isinstance(space.space, SentenceSpace):
        return found | {
            "encoder_model_relative": relative_path(reader.name, folder),
            "encoder_fingerprint": reader.fingerprint(),
        }
    return found | {
        "enc_dec_model": reader.name,
        "enc_dec_model_relative": relative_path(reader.name, folder),
        "language_model_fingerprint": reader.fingerprint(),
    }


def copy_text_decoder(source: Path, target: Path, space: DecodedSpace) -> None:
    """Copy the run folder of a decoder for inference: args.json and its best weights, its autoencoder if it has one.

    The copy needs nothing but the frozen models. space: that of the source, whose models name the folders where they
    were found.
    """
    saved = read_text_decoder_args(source)
    reader, lm = space.language_model, space.decoder.lm
    where: dict[str, Any] = {
        "decoder_model": lm.name,
        "decoder_model_relative": relative_path(lm.name, target),
    }
    name = "encoder_model" if isinstance(space.space, SentenceSpace) else "enc_dec_model"
    where |= {name: reader.name, f"{name}_relative": relative_path(reader.name, target)}
    write_json(target / "args.json", {**saved, **where})
    copy_weights(source, target, ("model",))
    if isinstance(space.space, CompressedSpace):
        copy_autoencoder(source / AUTOENCODER, target / AUTOENCODER, reader.name)
