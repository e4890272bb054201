"""Packages are read from strangers: weights and a config, nothing that runs. Also when they come from a URL."""

import functools
from typing import Any

from micro_musicgen.patching import Patch
from micro_musicgen.upstream.safe_load import harmless_only


def _apply(module: Any) -> None:
    get = module._get_state_dict

    @functools.wraps(get)
    def get_state_dict(file_or_url_or_id: Any, filename: Any = None, device: Any = "cpu", cache_dir: Any = None) -> Any:
        with harmless_only():
            if str(file_or_url_or_id).startswith("https://"):
                # The one reader in torch that still unpickles everything when not told otherwise.
                return module.torch.hub.load_state_dict_from_url(
                    str(file_or_url_or_id), map_location=device, check_hash=True, weights_only=True
                )
            return get(file_or_url_or_id, filename=filename, device=device, cache_dir=cache_dir)

    module._get_state_dict = get_state_dict


PATCH = Patch(
    name="load_package",
    target="audiocraft.models.loaders:_get_state_dict",
    broken="packages that hold an OmegaConf config are refused by torch >= 2.6; one from a URL is unpickled unchecked",
    issue="AC PR #534",
    fingerprints=("5f912412960b9ebc",),
    gone_when="audiocraft ships safetensors, or stores its config as text and asks for weights_only",
    apply=_apply,
)
