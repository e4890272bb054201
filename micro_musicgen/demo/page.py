"""The demo's HTML page: players, spectrograms, curves and numbers, with no script and nothing fetched from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
body{background:#14141a;color:#e8e6e3}
h1{font-weight:600}h2{margin-top:2.2rem;border-bottom:1px solid #333}
.clips{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:1rem}
.clip{background:#1d1d26;border-radius:8px;padding:.7rem}.clip img,.clip audio{width:100%}
.clip p{margin:.2rem 0;color:#aaa;font-size:.85rem}
table{border-collapse:collapse;margin:.5rem 0}
td,th{padding:.25rem .8rem;text-align:left;border-bottom:1px solid #2c2c38}
td.n{text-align:right;font-variant-numeric:tabular-nums}img.plot{max-width:100%;background:#fff;border-radius:8px}
small{color:#999}
"""


@dataclass(frozen=True)
class PageClip:
    """One player: paths are relative to the page."""

    title: str
    wav: str
    spectrogram: str


def _clips(clips: Sequence[PageClip]) -> str:
    cells = [
        f'<div class="clip"><audio controls preload="none" src="{quote(clip.wav)}"></audio>'
        f'<img src="{quote(clip.spectrogram)}" alt="spectrogram of {escape(clip.title)}">'
        f"<p>{escape(clip.title)}</p></div>"
        for clip in clips
    ]
    return f'<div class="clips">{"".join(cells)}</div>'


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Gives an HTML table; the first column is text, the others are set like numbers."""
    head = f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr>" if header else ""
    body = "".join(
        "<tr>" + "".join(f'<td class="{"n" if n else "t"}">{escape(cell)}</td>' for n, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table>{head}{body}</table>"


def render(
    *,
    title: str,
    intro: str,
    clip_groups: Mapping[str, Sequence[PageClip]],
    plots: Mapping[str, str],
    tables: Mapping[str, str],
) -> str:
    """Gives the page. `tables` holds HTML made by `table`; everything else is text and is escaped here."""
    parts = [f"<h1>{escape(title)}</h1><p>{escape(intro)}</p>"]
    parts += [f"<h2>{escape(name)}</h2>{_clips(clips)}" for name, clips in clip_groups.items()]
    parts += [
        f'<h2>{escape(name)}</h2><img class="plot" src="{quote(path)}" alt="{escape(name)}">'
        for name, path in plots.items()
    ]
    parts += [f"<h2>{escape(name)}</h2>{html}" for name, html in tables.items()]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    return (
        f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body>{"".join(parts)}</body></html>'
    )
