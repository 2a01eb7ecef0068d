"""Load weights of the denoisers of the published implementation.

The tables are (pattern of a published name, our name), applied in order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn

from model.denoiser import Denoiser
from model.encoder_state_denoiser import EncoderStateDenoiser
from utils.errors import UserError

Rules = Iterable[tuple[str, str]]

WRAPPERS = ("module.", "diffusion_model.", "perceiver_ae.")  # added by data parallelism and by enclosing models

# other tensors of a training checkpoint: normalization, schedules of the first release, the language model
IGNORED_KEYS = re.compile(
    r"(latent_mean|latent_scale|betas|alphas_cumprod.*|sqrt_.*|log_one_minus_.*|posterior_.*|p2_loss_weight)$"
    r"|context_encoder\."
)

LATENT_RULES: Rules = (
    (r"^time_mlp\.1\.", "time_embedding.up."),
    (r"^time_mlp\.3\.", "time_embedding.out."),
    (r"^time_pos_embed_mlp\.1\.", "time_to_token."),
    (r"^pos_emb\.emb\.", "positions."),
    (r"^class_embedding\.0\.", "class_labels.table."),
    (r"^class_embedding\.1\.", "class_to_time."),
    (r"^seq2seq_proj\.", "source_tokens.proj."),
    (r"^null_embedding_seq2seq\.weight$", "source_tokens.null"),
    (r"^encoder\.dense_projections\.", "trunk.skips."),
)
STATES_RULES: Rules = (
    (r"^class_embedding\.", "class_labels.table."),
    (r"^context_proj\.", "previous_tokens.proj."),
    (r"^null_embedding\.weight$", "previous_tokens.null"),
    (r"^encoder\.rel_pos\.relative_attention_bias\.", "relative_positions.table."),
    *(rule for rule in LATENT_RULES if "class_embedding" not in rule[0]),
)
# names after `encoder.layers.{l}.`, by the branch of sub-layer l
ATTENTION_RULES: Rules = ((r"^0\.0\.", "norm."), (r"^1\.to_", ""))
FEED_FORWARD_RULES: Rules = (
    (r"^0\.0\.", "norm."),
    (r"^0\.1\.", "post_norm."),
    (r"^1\.ff\.0\.proj\.", "up."),
    (r"^1\.ff\.3\.", "down."),
    (r"^2\.scale_shift\.time_mlp\.1\.", "scale_shift.proj."),
)
# the unofficial Hydra version of the first release
HYDRA_RULES: Rules = (
    (r"^class_emb\.", "class_labels.table."),
    (r"^self_proj\.", "previous_tokens.proj."),
    (r"^null_emb\.weight$", "previous_tokens.null"),
    (r"^time_pos_emb_mlp\.1\.", "time_to_token."),
    (r"^transformer_layers\.rel_pos\.relative_attention_bias\.", "relative_positions.table."),
    *(rule for rule in LATENT_RULES if "class_embedding" not in rule[0]),
)
HYDRA_BRANCH_RULES: Rules = (
    (r"^0\.", "norm."),
    (r"^1\.to_", ""),
    (r"^1\.ff\.0\.proj\.", "up."),
    (r"^1\.ff\.2\.", "down."),
    (r"^2\.time_mlp\.1\.", "scale_shift.proj."),
)
BRANCH_RULES = {"attention": ATTENTION_RULES, "cross": ATTENTION_RULES, "feed_forward": FEED_FORWARD_RULES}


def rename_parameter(name: str, rules: Rules) -> str:
    """The name after every rule."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def strip_prefixes(name: str, wrappers: Iterable[str] = WRAPPERS) -> str:
    """The name without the prefixes of wrappers, in any order."""
    while prefix := next((w for w in wrappers if name.startswith(w)), None):
        name = name.removeprefix(prefix)
    return name


def denoiser_name(reference: str, branches: tuple[str, ...], rules: Rules) -> str:
    """Our name of a denoiser's parameter. branches: those of one block, in the published order of sub-layers."""
    if found := re.match(r"encoder\.layers\.(\d+)\.(.+)$", reference):
        block, branch = divmod(int(found[1]), len(branches))
        return f"trunk.blocks.{block}.{branches[branch]}.{rename_parameter(found[2], BRANCH_RULES[branches[branch]])}"
    return rename_parameter(reference, rules)


def load_renamed(module: nn.Module, state: Mapping[str, Tensor], name: Callable[[str], str], what: str) -> None:
    """Copy state into module. UserError if names or shapes differ; the module is then unchanged."""
    ours = {name(key): value for key, value in state.items()}
    own = module.state_dict()
    differences = [f"lacks {k}" for k in own if k not in ours]
    differences += [f"holds {k}, which is unknown here" for k in ours if k not in own]
    differences += [
        f"holds {k} of shape {tuple(v.shape)} instead of {tuple(own[k].shape)}"
        for k, v in ours.items()
        if k in own and v.shape != own[k].shape
    ]
    if differences:
        more = f" ({len(differences) - 1} more differences)" if len(differences) > 1 else ""
        raise UserError(
            f"these weights are of another {what}: the file {differences[0]}{more}; "
            "build it with the options it was trained with"
        )
    module.load_state_dict(ours)


def load_reference(module: Denoiser | EncoderStateDenoiser, state: Mapping[str, Tensor]) -> None:
    """Load the published implementation's denoiser weights.

    state: its state dict, bare or with the prefixes module. and diffusion_model.; buffers and the language
    model's encoder in it are ignored. Weights with dense connections need --skip_pairing ld4lg.
    """
    block = module.trunk.blocks[0]
    branches = tuple(name for name in BRANCH_RULES if getattr(block, name) is not None)
    rules = STATES_RULES if isinstance(module, EncoderStateDenoiser) else LATENT_RULES
    network = {key: value for full, value in state.items() if not IGNORED_KEYS.match(key := strip_prefixes(full))}
    load_renamed(module, network, lambda key: denoiser_name(key, branches, rules), "denoiser")


def load_hydra(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the denoiser of a run of the Hydra version: the tensors of its state dict that begin with `transformer.`"""
    assert isinstance(module, EncoderStateDenoiser), "that version has the first release's network"
    branches = tuple(name for name in BRANCH_RULES if getattr(module.trunk.blocks[0], name) is not None)

    def name(reference: str) -> str:
        if found := re.match(r"transformer_layers\.layers\.(\d+)\.(.+)$", reference):
            block, branch = divmod(int(found[1]), len(branches))
            return f"trunk.blocks.{block}.{branches[branch]}.{rename_parameter(found[2], HYDRA_BRANCH_RULES)}"
        return rename_parameter(reference, HYDRA_RULES)

    bare = {strip_prefixes(key, ("module.",)): x for key, x in state.items()}
    own = {key.removeprefix("transformer."): x for key, x in bare.items() if key.startswith("transformer.")}
    load_renamed(module, own, name, "denoiser")
