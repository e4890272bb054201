"""A tiny T5 that is trained on nothing but texts, in a folder as the Hub's are: none of the published ones can be
fetched everywhere.

    python bench/tiny_t5.py FOLDER TEXTS [--steps N] [--seed N]      # a text a line

The objective is T5's own: spans of a text are cut out and the decoder writes them. Nothing about any sound is known
to it. Kept are the encoder and the tokenizer, which `AutoTokenizer` and `T5EncoderModel` load.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DIM, LAYERS, HEADS = 64, 2, 4
STEPS, BATCH, LR = 600, 64, 3e-3
NUM_SENTINELS = 4
CUT_SHARE = 0.15
"""Of the tokens of a text; at least one."""
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:-"


def make(folder: Path, texts: Sequence[str], *, steps: int = STEPS, seed: int = 0) -> float:
    """Gives the share of cut-out tokens that the trained model writes back rightly, after filling `folder`."""
    import numpy as np
    import torch

    import micro_musicgen.upstream  # noqa: F401  (transformers imports torchaudio, which may need its patch)

    tokenizer = make_tokenizer(texts)
    known = [tokenizer(text)["input_ids"] for text in dict.fromkeys(texts)]
    rng = np.random.default_rng(seed)
    pad = tokenizer.pad_token_id

    def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        return corrupted([known[int(row)] for row in rng.integers(len(known), size=size)], rng, tokenizer)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(len(tokenizer), pad)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = LR * min(1.0, (step + 1) / 20) * (1 - step / steps)
            given, wanted = batch(BATCH)
            loss = model(input_ids=given, attention_mask=given != pad, labels=wanted).loss
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        model.eval()
        given, wanted = batch(256)
        with torch.no_grad():
            logits = model(input_ids=given, attention_mask=given != pad, labels=wanted).logits
    sentinels = torch.tensor(_sentinels(tokenizer))
    counts = (wanted != -100) & (wanted != tokenizer.eos_token_id) & ~torch.isin(wanted, sentinels)
    _save(model, tokenizer, folder)
    return float((logits.argmax(-1) == wanted)[counts].float().mean())


def make_tokenizer(texts: Sequence[str]) -> Any:
    """Gives a T5 tokenizer with a token for each word of `texts`, each letter and digit, and each cut-out span."""
    from transformers import T5Tokenizer

    words = sorted({word for text in texts for word in re.findall(r"[a-z]+", text.lower())})
    letters = sorted({letter for text in texts for letter in text if letter != " "} | set(LETTERS))
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    vocabulary += [(f"▁{word}", -1.0) for word in words]
    vocabulary += [(letter, -6.0) for letter in letters]
    return T5Tokenizer(vocab=vocabulary, extra_ids=NUM_SENTINELS)


def _sentinels(tokenizer: Any) -> list[int]:
    return [int(tokenizer.convert_tokens_to_ids(f"<extra_id_{index}>")) for index in range(NUM_SENTINELS)]


def build(num_tokens: int, pad_token_id: int) -> Any:
    """Gives an untrained encoder and decoder."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=num_tokens,
        d_model=DIM,
        d_kv=DIM // HEADS,
        d_ff=2 * DIM,
        num_heads=HEADS,
        num_layers=LAYERS,
        dropout_rate=0.0,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        decoder_start_token_id=pad_token_id,
        pad_token_id=pad_token_id,
    )
    return T5ForConditionalGeneration(config)


def corrupted(texts: Sequence[Sequence[int]], rng: Any, tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Gives token ids [B, S] in which spans are replaced by sentinels, padded, and what was cut out, padded with -100.

    texts: token ids, each ended by the end token, which is never cut.
    """
    sentinels = _sentinels(tokenizer)
    given, wanted = [], []
    for ids in texts:
        cut = rng.random(len(ids) - 1) < CUT_SHARE
        cut[int(rng.integers(len(cut)))] = True
        kept: list[int] = []
        gone: list[int] = []
        spans = 0
        for place, token in enumerate(ids[:-1]):
            starts_span = cut[place] and (place == 0 or not cut[place - 1])
            if not cut[place] or (starts_span and spans == NUM_SENTINELS):
                cut[place] = False  # more spans than sentinels: the rest stays
                kept.append(token)
                continue
            if starts_span:
                kept.append(sentinels[spans])
                gone.append(sentinels[spans])
                spans += 1
            gone.append(token)
        given.append([*kept, ids[-1]])
        wanted.append([*gone, ids[-1]])
    return _padded(given, tokenizer.pad_token_id), _padded(wanted, -100)


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    import torch

    length = max(map(len, rows))
    return torch.tensor([[*row, *([value] * (length - len(row)))] for row in rows])


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes the encoder alone: what a frozen conditioner loads."""
    import torch
    from transformers import T5EncoderModel

    encoder = T5EncoderModel(model.config)
    encoder.load_state_dict(
        {name: tensor for name, tensor in model.state_dict().items() if name.startswith(("shared.", "encoder."))}
    )
    assert torch.equal(encoder.shared.weight, model.shared.weight)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    encoder.save_pretrained(folder)


def main() -> None:
    """Makes one from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("texts", type=Path, help="a file with a text a line")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    texts = [line for line in given.texts.read_text(encoding="utf-8").splitlines() if line.strip()]
    share = make(given.folder, texts, steps=given.steps, seed=given.seed)
    sys.stdout.write(f"{100 * share:.1f} % of the tokens that were cut out come back\n")


if __name__ == "__main__":
    main()
