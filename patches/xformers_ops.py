"""audiocraft imports xformers without a condition; torch has each of the three things that it uses."""

from importlib.util import find_spec
from types import ModuleType
from typing import Any

from micro_musicgen.patching import Patch
from micro_musicgen.upstream.stubs import serve


class LowerTriangularMask:
    """Says "causal" to `memory_efficient_attention`, and holds no mask."""


def memory_efficient_attention(query: Any, key: Any, value: Any, attn_bias: Any = None, p: float = 0.0) -> Any:
    """Gives attention [B, T, H, D] over `key` and `value` [B, S, H, D] through torch."""
    from torch.nn.functional import scaled_dot_product_attention

    is_causal = isinstance(attn_bias, LowerTriangularMask)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    mask = None if is_causal else attn_bias
    out = scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=p, is_causal=is_causal)
    return out.transpose(1, 2)


def _ops() -> ModuleType:
    import torch

    ops = ModuleType("xformers.ops")
    vars(ops).update(
        unbind=torch.unbind,
        LowerTriangularMask=LowerTriangularMask,
        memory_efficient_attention=memory_efficient_attention,
    )
    return ops


def _xformers() -> ModuleType:
    package = ModuleType("xformers")
    vars(package).update(ops=_ops())
    return package


def _apply(module: Any) -> None:
    serve({"xformers": _xformers, "xformers.ops": _ops})


PATCH = Patch(
    name="xformers_ops",
    target="audiocraft.modules.transformer",
    broken="import of any model dies without xformers, and memory_efficient: true too",
    issue="AC #231 #599, PR #593",
    gone_when="audiocraft imports xformers inside use and only for its own backend",
    apply=_apply,
    before_import=True,
    needed=lambda: find_spec("xformers") is None,
)
