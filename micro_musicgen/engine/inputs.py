"""What a caller says to a model, checked and turned into what its network hears: texts, sounds, counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from micro_musicgen.conditioners.audio_prompt import AudioPromptConditioner
from micro_musicgen.conditioners.bars import Bars
from micro_musicgen.conditioners.base import Conditioner as OneConditioner
from micro_musicgen.conditioners.provider import ConditionProvider
from micro_musicgen.engine.conditions import Heard
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.upstream import audiocraft_module

TEXT, SOUND = "description", "audio_prompt"
"""Names under which models of this project listen to what is said in `generate`."""


def check_count(num_samples: int) -> int:
    """Gives `num_samples` when it is a usable number of clips.

    Raises:
        MicroMusicGenError: it is below 1.
    """
    if num_samples < 1:
        raise MicroMusicGenError(f"{num_samples} clips were asked for; ask for 1 or more")
    return num_samples


def checked_texts(descriptions: Sequence[str | None] | None, num_clips: int | None = None) -> list[str | None]:
    """Gives one text per clip; None, and a text of nothing but spaces, is nothing said.

    num_clips: None where the texts say how many clips there are.

    Raises:
        MicroMusicGenError: not a list of texts, or more or fewer of them than clips.
    """
    if descriptions is None:
        return [None] * (num_clips or 0)
    if isinstance(descriptions, str):
        raise MicroMusicGenError(f"descriptions is a list of texts, one per clip; write [{descriptions!r}]")
    for text in descriptions:
        if text is not None and not isinstance(text, str):
            raise MicroMusicGenError(f"a description is a text or None, got {text!r}")
    if num_clips is not None and len(descriptions) != num_clips:
        raise MicroMusicGenError(f"{len(descriptions)} texts for {num_clips} clips; give one each (None for none)")
    return [text if text and text.strip() else None for text in descriptions]


class Conditioner(Protocol):
    """Turns what a caller says into what the network hears.

    audio: names of conditions that are sounds; empty where audio prompts mean nothing to the model. sound_frames: codec
    frames of a sound that it listens to at most, the first ones; None for all.
    """

    audio: frozenset[str]
    sound_frames: int | None

    def heard(
        self, texts: Sequence[str | None], sounds: Sequence[torch.Tensor | None], bars: Bars | None = None
    ) -> Heard:
        """Gives the conditions of B clips, of texts and of codes [K, T], each possibly None.

        bars: where all of them start and how long they loop; None in clock time. Who doesn't listen passes over it.

        Invariant: a clip's conditions don't depend on the other clips, padding apart.
        """


class Unconditioned:
    """For models that were trained without conditions."""

    audio: frozenset[str] = frozenset()
    sound_frames: int | None = None

    def heard(
        self, texts: Sequence[str | None], sounds: Sequence[torch.Tensor | None], bars: Bars | None = None
    ) -> Heard:
        """Gives nothing.

        Raises:
            MicroMusicGenError: something was said.
        """
        _refuse(texts, sounds)
        return Heard(conditional={}, null={})


def _refuse(texts: Sequence[str | None] = (), sounds: Sequence[torch.Tensor | None] = ()) -> None:
    """Refuses what was said to a model that can't hear it."""
    said = [text for text in texts if text is not None]
    if said:
        raise MicroMusicGenError(
            f"this model was trained without text, so {said[0]!r} means nothing to it; use generate_unconditional"
        )
    if any(sound is not None for sound in sounds):
        raise no_sounds()


def no_sounds() -> MicroMusicGenError:
    """Gives what is said about audio prompts for a model that can't hear them."""
    return MicroMusicGenError(
        "this model was trained without audio prompts, so they mean nothing to it; leave them out, or have a sound go "
        "on: generate_continuation (--prompt)"
    )


class OwnConditioner:
    """This project's conditioners, trained with the model. Texts go to the condition `description`, sounds to
    `audio_prompt`, or to the first one of that kind, bars to all of theirs; conditions beyond these hear nothing.
    """

    def __init__(self, provider: ConditionProvider) -> None:
        self.provider = provider
        self.audio = frozenset(provider.names("audio"))
        self.text_name = _main(provider.names("text"), TEXT)
        self.sound_name = _main(provider.names("audio"), SOUND)
        listener = provider.conditioners[self.sound_name] if self.sound_name else None
        # What others make of a sound, and how long a one they hear, is theirs to say: they get the whole.
        self.sound_frames = listener.num_positions if isinstance(listener, AudioPromptConditioner) else None

    @torch.inference_mode()
    def heard(
        self, texts: Sequence[str | None], sounds: Sequence[torch.Tensor | None], bars: Bars | None = None
    ) -> Heard:
        """Gives the conditions, each thing said embedded alone and once.

        Raises:
            MicroMusicGenError: a text or a sound for a model that was trained without.
        """
        _refuse(() if self.text_name else texts, () if self.sound_name else sounds)
        said: dict[str | None, Sequence[Any]] = {self.text_name: texts, self.sound_name: sounds}
        said |= dict.fromkeys(self.provider.names("bars"), [bars] * len(texts))
        conditional, null = {}, {}
        for name, each in self._each():
            rows = list(_embedded(each, said.get(name, [None] * len(texts))))
            conditional[name] = torch.cat([x for x, _ in rows]), torch.cat([mask for _, mask in rows])
            null[name] = each.null(len(texts))
        return Heard(conditional=conditional, null=null, audio=self.audio)

    def _each(self) -> Iterator[tuple[str, OneConditioner]]:
        for name, each in self.provider.conditioners.items():
            assert isinstance(each, OneConditioner), name
            yield name, each


def _main(names: tuple[str, ...], usual: str) -> str | None:
    return usual if usual in names else next(iter(names), None)


def _embedded(conditioner: OneConditioner, things: Sequence[Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields embeddings [1, S, D] and mask [1, S] of each thing said.

    One by one: an encoder's sums depend on the size of its batch, and a clip must not depend on its neighbours.
    """
    made: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {None: conditioner.null(1)}
    for thing in things:
        key = id(thing) if isinstance(thing, torch.Tensor) else thing
        if key not in made:
            made[key] = conditioner(conditioner.prepare([thing]))
        yield made[key]


class UpstreamConditioner:
    """audiocraft's conditioners, as they were trained with the model. Knows text."""

    audio: frozenset[str] = frozenset()
    sound_frames: int | None = None

    def __init__(self, provider: Any) -> None:
        known = set(provider.conditioners)
        others = ", ".join(sorted(known - set(provider.text_conditions)))
        self.provider = provider
        self.fault = f"this model also listens to {others}, which can't be given here yet" if others else None
        self.names = sorted(known)

    @torch.inference_mode()
    def heard(
        self, texts: Sequence[str | None], sounds: Sequence[torch.Tensor | None], bars: Bars | None = None
    ) -> Heard:
        """Gives the conditions, padded to the longest as audiocraft pads them: both halves together.

        Raises:
            MicroMusicGenError: a text or sound for a model that knows none, or a model that needs something else.
        """
        if self.fault is not None:
            raise MicroMusicGenError(self.fault)
        _refuse(() if TEXT in self.names else texts, sounds)
        attributes = audiocraft_module("modules.conditioners").ConditioningAttributes
        silent: dict[str, str | None] = dict.fromkeys(self.names)
        said = [attributes(text={**silent, TEXT: text}) for text in texts]
        unsaid = [attributes(text=dict(silent)) for _ in texts]
        found = self.provider(self.provider.tokenize([*said, *unsaid]))
        half = len(texts)
        return Heard(
            conditional={name: (x[:half], mask[:half]) for name, (x, mask) in found.items()},
            null={name: (x[half:], mask[half:]) for name, (x, mask) in found.items()},
        )
