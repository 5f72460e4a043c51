"""How the book looks, as data: one colour per family and per outcome on every page, one seaborn theme.

Figures stand on a white card in light and dark mode alike: a transparent ground would need an ink that reads on both,
and there is none of 4.5 : 1.  Family colours have a contrast of 3 : 1 or more on that card, outcome colours on the site's
white and dark grounds (WCAG 1.4.11); those that meet most often stay apart for colour-blind readers.
``tests/report/test_theme.py`` measures all three.
"""

from __future__ import annotations

from typing import Any

from cnnstudy.config import choose

WIDTH = 7.0  # inches: the width of the page's text, so that figure text comes out at about the page's size
DPI = 144  # pixels per inch of a saved figure: sharp on a dense screen, and still under 100 kB
SEQUENCE = "cividis"  # colour map of ordered values (depth, eps, ...): perceptually even, safe for colour-blind readers

FAMILY: dict[str, str] = {
    "plain": "#dd6a12",
    "vgg": "#8a1f66",
    "resnet": "#1668b8",
    "mobilenet": "#12996b",
    "efficientnet": "#6a5200",
    "densenet": "#7a5cc0",
    "resnext": "#3d86a8",
    "wideresnet": "#5470d6",
    "shufflenet": "#4d8b2b",
    "regnet": "#b4506e",
    "other": "#74777c",
}

_MARKER: dict[str, str] = {
    "plain": "s",
    "vgg": "D",
    "resnet": "o",
    "mobilenet": "^",
    "efficientnet": "v",
    "densenet": "P",
    "resnext": "X",
    "wideresnet": "h",
    "shufflenet": "<",
    "regnet": ">",
    "other": "d",
}

# the first prefix that fits names the family; a longer one stands before a shorter one
_PREFIXES: tuple[tuple[str, str], ...] = (
    ("plain", "plain"),
    ("vgg", "vgg"),
    ("alexnet", "other"),
    ("wideresnet", "wideresnet"),
    ("wide_resnet", "wideresnet"),
    ("wrn", "wideresnet"),
    ("resnext", "resnext"),
    ("seresnext", "resnext"),
    ("preact", "resnet"),
    ("seresnet", "resnet"),
    ("resnet", "resnet"),
    ("densenet", "densenet"),
    ("mobilenet", "mobilenet"),
    ("mnasnet", "mobilenet"),
    ("shufflenet", "shufflenet"),
    ("efficientnet", "efficientnet"),
    ("tf_efficientnet", "efficientnet"),
    ("regnet", "regnet"),
)

OUTCOME: dict[str, str] = {
    "confirmed": "#0b8457",
    "refuted": "#c23b22",
    "mixed": "#7d5bd0",
    "undecided": "#a98600",
    "untested": "#7b7f86",
}

OUTCOME_SIGN: dict[str, str] = {"confirmed": "✓", "refuted": "✗", "mixed": "±", "undecided": "?", "untested": "–"}

OUTCOME_MEANING: dict[str, str] = {
    "confirmed": "every condition written down beforehand held, with its margin, on enough runs.",
    "refuted": "the measurements show the contrary, as clearly as confirming would have asked for.",
    "mixed": "part of it holds and part does not, or it holds in some settings only; the page says which.",
    "undecided": "measured, but the interval straddles the margin: these runs cannot tell.",
    "untested": "not judged: the records are not there yet, or nothing we can run here could decide it.",
}

RC: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],  # comes with Matplotlib: the same letters, hence the same bytes, on every machine
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.labelsize": 10.0,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "figure.figsize": (WIDTH, 3.6),
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "figure.facecolor": "#ffffff",
    "axes.facecolor": "#ffffff",
    "savefig.facecolor": "#ffffff",
    "text.color": "#1c1e21",
    "axes.labelcolor": "#1c1e21",
    "xtick.color": "#3a3d42",
    "ytick.color": "#3a3d42",
    "axes.edgecolor": "#74777c",
    "grid.color": "#dfe2e6",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "svg.hashsalt": "cnnstudy",
    "svg.fonttype": "path",
}

VEGA: dict[str, Any] = {"range": {"category": list(FAMILY.values()), "ramp": {"scheme": SEQUENCE}}}


def family_name(model: str) -> str:
    """The family of a model's name: ``"resnet50"``, ``"MobileNetV2"`` or a family itself.

    A name that no family claims is ``"other"``: a chart must not fail for a new model.
    """
    name = model.lower().replace("-", "").replace(" ", "")
    if name in FAMILY:
        return name
    return next((family for prefix, family in _PREFIXES if name.startswith(prefix)), "other")


def family(model: str) -> str:
    """The colour (``#rrggbb``) of a model's family, the same on every page."""
    return FAMILY[family_name(model)]


def marker(model: str) -> str:
    """The marker of a model's family: colour is never the only sign."""
    return _MARKER[family_name(model)]


def outcome(name: str) -> str:
    """The colour (``#rrggbb``) of an outcome; an unknown outcome is refused."""
    return OUTCOME[choose("outcome", name, OUTCOME)]


def use() -> None:
    """Make the theme current for Matplotlib and seaborn; call it once, before plotting."""
    import seaborn as sns

    sns.set_theme(context="notebook", style="whitegrid", palette=list(FAMILY.values()), rc=RC)


def css() -> str:
    """The outcome colours as CSS custom properties: the site's style sheet has none of its own."""
    lines = [f"  --cnn-{name}: {colour};" for name, colour in OUTCOME.items()]
    signs = [
        f'.cnn-badge[data-outcome="{name}"] {{ --cnn-outcome: var(--cnn-{name}); --cnn-sign: "{sign}"; }}\n'
        f'.cnn-verdict[data-outcome="{name}"], .cnn-bar [data-outcome="{name}"] {{ --cnn-outcome: var(--cnn-{name}); }}'
        for name, sign in OUTCOME_SIGN.items()
    ]
    return ":root {\n" + "\n".join(lines) + "\n}\n" + "\n".join(signs) + "\n"
