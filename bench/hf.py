"""The same weights in transformers' MusicGen: names mapped over, written once in its own form, driven by its own loop.

`MusicgenForCausalLM` generates without a text encoder: no condition, or hidden states handed in. Its layers always have
cross-attention weights, also where nothing is attended to; those are zeros here and count in its memory, not in its
steps. Its EnCodec knows one activation (ELU), so codecs with another have no counterpart.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PREFIXES = (
    (r"^emb\.(\d+)\.", r"model.decoder.embed_tokens.\1."),
    (r"^linears\.(\d+)\.", r"lm_heads.\1."),
    (r"^out_norm\.", "model.decoder.layer_norm."),
    (r"^transformer\.layers\.(\d+)\.", r"model.decoder.layers.\1."),
)
PARTS = (
    (".norm1.", ".self_attn_layer_norm."),
    (".norm_cross.", ".encoder_attn_layer_norm."),
    (".norm2.", ".final_layer_norm."),
    (".cross_attention.", ".encoder_attn."),
    (".linear1.", ".fc1."),
    (".linear2.", ".fc2."),
)
CODEC_NAMES = (
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"\.conv\.conv\.", ".conv."),
    (r"\.convtr\.convtr\.", ".conv."),
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
    (r"^quantizer\.vq\.layers\.(\d+)\._codebook\.", r"quantizer.layers.\1.codebook."),
)


def is_installed() -> bool:
    """Says whether transformers is there, without importing it."""
    return importlib.util.find_spec("transformers") is not None


def transformers_module() -> Any:
    """Gives transformers, quiet. It imports torchaudio, which beside a CPU torch needs this project's patch first."""
    importlib.import_module("micro_musicgen.upstream")
    library = importlib.import_module("transformers")
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    return library


def map_lm(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gives an audiocraft LM's tensors under transformers' names; conditioners are left out."""
    mapped: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("condition_provider."):
            continue
        for pattern, replacement in PREFIXES:
            name = re.sub(pattern, replacement, name)
        for ours, theirs in PARTS:
            name = name.replace(ours, theirs)
        if name.endswith("in_proj_weight"):
            stem = name.removesuffix("in_proj_weight")
            mapped.update(zip((f"{stem}{p}_proj.weight" for p in "qkv"), tensor.chunk(3), strict=True))
        else:
            mapped[name] = tensor
    return mapped


def map_codec(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gives an audiocraft EnCodec's tensors under transformers' names."""
    mapped = {}
    for name, tensor in state.items():
        for pattern, replacement in CODEC_NAMES:
            name = re.sub(pattern, replacement, name)
        mapped[name] = tensor
    return mapped


def lm_config(shape: Mapping[str, Any], max_steps: int) -> Any:
    """Gives the MusicgenDecoderConfig of an LM. shape: its `transformer_lm` config. max_steps: longest sequence."""
    card = shape["card"]
    return transformers_module().MusicgenDecoderConfig(
        vocab_size=card,
        max_position_embeddings=max_steps,
        num_hidden_layers=shape["num_layers"],
        ffn_dim=int(shape["hidden_scale"] * shape["dim"]),
        num_attention_heads=shape["num_heads"],
        hidden_size=shape["dim"],
        num_codebooks=shape["n_q"],
        activation_function="gelu",
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        scale_embedding=False,
        pad_token_id=card,
        bos_token_id=card,
        decoder_start_token_id=card,
    )


def codec_config(config: Mapping[str, Any]) -> Any:
    """Gives the EncodecConfig of a codec's builder config.

    Raises:
        ValueError: transformers' EnCodec can't be that codec.
    """
    seanet, rvq = config["seanet"], config["rvq"]
    if seanet["activation"] != "ELU" or not seanet["lstm"]:
        raise ValueError(
            f"transformers' EnCodec has ELU and an LSTM only, not {seanet['activation']} with lstm {seanet['lstm']}"
        )
    frame_rate = config["sample_rate"] / hop_samples(config)
    return transformers_module().EncodecConfig(
        target_bandwidths=[frame_rate * rvq["n_q"] * (rvq["bins"] - 1).bit_length() / 1000],
        sampling_rate=config["sample_rate"],
        audio_channels=config["channels"],
        hidden_size=seanet["dimension"],
        num_filters=seanet["n_filters"],
        num_residual_layers=seanet["n_residual_layers"],
        upsampling_ratios=list(seanet["ratios"]),
        kernel_size=seanet["kernel_size"],
        last_kernel_size=seanet["last_kernel_size"],
        residual_kernel_size=seanet["residual_kernel_size"],
        dilation_growth_rate=seanet["dilation_base"],
        use_causal_conv=seanet["causal"],
        pad_mode=seanet["pad_mode"],
        compress=seanet["compress"],
        num_lstm_layers=seanet["lstm"],
        codebook_size=rvq["bins"],
        codebook_dim=seanet["dimension"],
        use_conv_shortcut=not seanet["true_skip"],
    )


def hop_samples(config: Mapping[str, Any]) -> int:
    """Gives the samples of a frame, from a codec's builder config."""
    return math.prod(config["seanet"]["ratios"])


def written(model_folder: Path, max_steps: int = 2048) -> Path:
    """Gives `model_folder`/transformers, with `lm` and, where it can be, `codec`, after writing what is not there."""
    from micro_musicgen import storage, weights

    folder = model_folder / "transformers"
    if folder.is_dir():
        return folder
    library = transformers_module()
    release = storage.read_json(model_folder / "micro" / "config.json")
    scratch = folder.with_name(f".transformers.{os.getpid()}.tmp")
    try:
        state = map_lm(weights.read_weights(model_folder / "micro" / "model.safetensors"))
        lm = library.MusicgenForCausalLM(lm_config(release["lm"]["transformer_lm"], max_steps))
        _fill(lm, state, may_miss=r"encoder_attn|embed_positions")
        lm.save_pretrained(scratch / "lm")
        try:
            codec = library.EncodecModel(codec_config(release["codec"]))
        except ValueError as error:
            storage.write_text(scratch / "no_codec.txt", str(error))
        else:
            _fill(codec, map_codec(weights.read_weights(model_folder / "micro" / "codec.safetensors")), may_miss="$^")
            codec.save_pretrained(scratch / "codec")
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _fill(module: torch.nn.Module, state: Mapping[str, torch.Tensor], *, may_miss: str) -> None:
    import torch

    missing, unexpected = module.load_state_dict(state, strict=False)
    faults = [*(name for name in missing if not re.search(may_miss, name)), *unexpected]
    assert not faults, f"names that were not mapped: {faults[:5]}"
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in missing and "layer_norm" not in name:
                parameter.zero_()
