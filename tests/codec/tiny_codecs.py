"""Other people's codecs with random weights, as small as they get, saved the way that their makers save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

ENCODEC_24KHZ = {"sampling_rate": 24000, "upsampling_ratios": [8, 5, 4, 2], "target_bandwidths": [0.45, 0.9, 1.8, 3.6],
                 "use_causal_conv": True, "pad_mode": "reflect"}  # fmt: skip
"""The published model's strides and causality; 8 codebooks of 64."""
ENCODEC_32KHZ = {"sampling_rate": 32000, "upsampling_ratios": [8, 5, 4, 4], "target_bandwidths": [1.2],
                 "use_causal_conv": False}  # fmt: skip
DAC_44KHZ = {"sampling_rate": 44100, "downsampling_ratios": [2, 4, 8, 8], "n_codebooks": 9}
DAC_24KHZ = {"sampling_rate": 24000, "downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 6}


def save_encodec(folder: Path, **changes: Any) -> Path:
    """An EncodecModel of transformers'."""
    import transformers

    torch.manual_seed(0)
    facts = {"audio_channels": 1, "codebook_size": 64, "codebook_dim": 16, "hidden_size": 16, "num_filters": 2,
             "normalize": False, "num_lstm_layers": 1}  # fmt: skip
    model = transformers.EncodecModel(transformers.EncodecConfig(**{**facts, **ENCODEC_32KHZ, **changes}))
    with torch.inference_mode():
        latents = model.eval().encoder(0.3 * torch.randn(1, model.config.audio_channels, 32000))
        spread = latents.std(dim=-1)
        for index, layer in enumerate(model.quantizer.layers):  # codes that are used: where the latents are
            centre = latents.mean(dim=-1) if index == 0 else 0
            layer.codebook.embed.copy_(centre + spread * torch.randn(layer.codebook.embed.shape))
    model.save_pretrained(folder)
    return folder


def save_dac(folder: Path, **changes: Any) -> Path:
    """A DacModel of transformers', with the wrong hop_length that published configs have."""
    import transformers

    torch.manual_seed(0)
    facts = {"encoder_hidden_size": 4, "decoder_hidden_size": 32, "codebook_size": 64, "codebook_dim": 4}
    model = transformers.DacModel(transformers.DacConfig(**{**facts, **DAC_44KHZ, **changes}))
    for parameter in model.parameters():  # drawn so small that everything sounds alike
        if parameter.dim() > 1 and parameter.shape[0] > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.config.hop_length = 512
    model.save_pretrained(folder)
    return folder


def save_package_weights(path: Path, **changes: Any) -> Path:
    """The encodec package's file of weights, at full size: a dict of tensors. changes: to the config's seanet."""
    from micro_musicgen.codec.builder import build_codec_model
    from micro_musicgen.codec.encodec_24khz import CONFIG

    model = build_codec_model({**CONFIG, "seanet": {**CONFIG["seanet"], **changes}}, device="meta")
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in model.state_dict().items():
        drawn = torch.randn(tensor.shape, generator=generator)
        is_scale = name.endswith(("weight_g", "inited", "cluster_size"))
        state[name] = torch.ones(tensor.shape) if is_scale else drawn * (1 if "weight_v" in name else 0.05)
    torch.save(state, path)
    return path
