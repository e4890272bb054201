"""The errors that a person can mend, as opposed to broken invariants, which assert.

Every message names the value that was wrong and the way out in one line. `cli.py` prints that line and exits with
`exit_code`; a library caller catches `MicroMusicGenError`.
"""


class MicroMusicGenError(ValueError):
    """Something the caller gave cannot be used; the message says what and what to do instead."""

    exit_code = 2


class MissingFileError(MicroMusicGenError):
    """A file, run, release or checkpoint that was named does not exist."""


class MissingExtraError(MicroMusicGenError):
    """An optional library is needed here and not installed; the message names the extra that carries it."""


class UnreadableAudioError(MicroMusicGenError):
    """A file is not audio, is cut off, or holds samples that cannot be trained on."""


class DiskFullError(MicroMusicGenError):
    """There is no room for what has to be written; what was there before still is."""

    exit_code = 1
