"""What an evaluation is asked for, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from micro_musicgen.contracts import GenerationParams
from micro_musicgen.errors import MicroMusicGenError, MissingFileError
from micro_musicgen.evaluation.prompts import Prompt, read_prompts

STATISTICS_SUFFIX = ".npz"
DEFAULT_EMBEDDERS = ("log_mel", "codec")
NUM_CLIPS = 32


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What `micro-musicgen evaluate` was asked for.

    reference: a data set, a folder or a statistics file of real sounds. training: the data set or folder that the model
    learned from. embedders: NAME or NAME:REFERENCE each. split: of a reference that is a data set. max_minutes: of
    reference, and of training, that is listened to. texts, prompts_file: what clips are asked for, in turn.
    label: the attribute that the classifier recognises; labels_file: a CSV of it, else the data set's own.
    decoder: what codes sound through, as `MicroMusicGen.get_pretrained` takes it.
    """

    release: str
    reference: str | None = None
    training: str | None = None
    split: str = "valid"
    embedders: tuple[str, ...] = ()
    num_clips: int = NUM_CLIPS
    duration_s: float = 8.0
    seed: int = 0
    texts: tuple[str, ...] = ()
    prompts_file: Path | None = None
    label: str = "genre"
    labels_file: Path | None = None
    out: Path = Path("evaluation")
    save_statistics: Path | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 0.0
    cfg_coef: float | None = None
    max_minutes: float = 30.0
    batch_size: int = 8
    decoder: str | None = None
    device: str | None = None
    precision: str = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        faults = []
        if self.num_clips < 2:
            faults.append(f"{self.num_clips} clips tell nothing of a model; give -n 2 or more, better 32")
        if self.batch_size < 1:
            faults.append(f"batch size {self.batch_size} must be 1 or more")
        if not self.max_minutes > 0:
            faults.append(f"max-minutes {self.max_minutes:g} must be above 0")
        if self.split not in ("train", "valid", "both"):
            faults.append(f"split {self.split!r} is none of train, valid, both")
        if any(not text.strip() for text in self.texts):
            faults.append("a text is empty; leave it out")
        if faults:
            raise MicroMusicGenError("; ".join(faults))
        GenerationParams(duration_s=self.duration_s, temperature=self.temperature, top_p=self.top_p, seed=self.seed)
        if self.reference_is_statistics and not Path(str(self.reference)).expanduser().is_file():
            raise MissingFileError(f"{self.reference} does not exist; make it with --save-stats, or name a folder")

    @property
    def reference_is_statistics(self) -> bool:
        """True where the reference is a file of statistics, without sounds."""
        return self.reference is not None and self.reference.endswith(STATISTICS_SUFFIX)

    def prompts(self) -> list[Prompt]:
        """Gives what is asked for; nothing means clips without text.

        Raises:
            MicroMusicGenError: the file of prompts can't be used.
        """
        listed = read_prompts(self.prompts_file, self.label) if self.prompts_file is not None else []
        return [*(Prompt(text.strip()) for text in self.texts), *listed]

    def prompt_of(self, clip: int) -> Prompt | None:
        """Gives the prompt of clip number `clip`: they take turns."""
        prompts = self.prompts()
        return prompts[clip % len(prompts)] if prompts else None
