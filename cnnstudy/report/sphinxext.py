"""The Sphinx side of the book: what notebooks' outputs become, formulas without a script, pages without a request.

* An image or Vega-Lite output whose metadata has ``alt``, ``caption`` and ``name`` becomes a figure that is described,
  captioned and numbered; so a caption can name the machine and the number of runs that the records have.
* Formulas become MathML when the site is built (docutils' own converter): nothing to load, and screen readers know it.
* What the theme and its extensions get wrong is put right in :func:`mend_page`.

The entry point ``cnnstudy`` of the group ``myst_nb.mime_renderers`` names :class:`Renderer`.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

from cnnstudy.report import overview, pages, show

if TYPE_CHECKING:
    from myst_nb.core.render import MimeData, NbElementRenderer
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

log = logging.getLogger(__name__)

VEGA = tuple(f"application/vnd.vegalite.v{n}+json" for n in (6, 5))
IMAGES = ("image/png", "image/jpeg", "image/svg+xml", "image/gif", "image/webp")
_NUMBERED = re.compile(r"\\(begin|end)\{(?:align|eqnarray|gather|equation)\*?\}")  # a formula's number comes from its :label:, not from TeX
MENDED = (  # found by axe: markup of others, and what it should be
    ('<summary aria-label="Toggle hidden content">', "<summary>"),  # the label hid the visible words (WCAG 2.5.3)
    ('<div role="list" class="citation-list">', '<div class="citation-list">'),  # its children are no list items
    (' role="doc-biblioentry"', ""),  # deprecated
)
SAID = re.compile(r'<span class="pasted-text">([^<]{40,})</span>')  # prose that a cell wrote
THEBE = re.compile(r'<script type="text/x-thebe-config">.*?</script>\s*(<script>kernelName = .*?</script>)?', re.DOTALL)
# The mode of a first visit, before the page is drawn: the theme sets it later, after a flash of white and a complaint on the
# console.  Its own option for it writes an attribute that leaves a reader without JavaScript without any colour.
FIRST_MODE = (
    "{const d=document.documentElement.dataset;d.mode||='auto';"
    "d.theme||=matchMedia('(prefers-color-scheme: dark)').matches?'dark':'light';}"
)
CHARTS = "cnnstudy_charts"  # key of a page's metadata: this page has a chart


class Renderer:
    """What myst-nb asks, for each output, before it renders the output itself."""

    mime_priority_overrides = [("*", mime, 1) for mime in VEGA]

    @staticmethod
    def handle_mime(renderer: NbElementRenderer, data: MimeData, inline: bool) -> list[nodes.Element] | None:
        """The nodes of an image or chart output, or None where myst-nb's own way will do."""
        about = (data.output_metadata or {}).get(data.mime_type) or {}
        if data.mime_type in IMAGES:
            if "alt" not in about:
                return None
            shown = renderer.render_image_inline(data) if inline else renderer.render_image(data)
            for node in shown:
                for image in node.findall(nodes.image):
                    image["alt"] = str(about["alt"])
        elif data.mime_type in VEGA:
            shown = [_chart(renderer, data, str(about.get("alt", "")))]
        else:
            return None
        return shown if inline or "caption" not in about else [_figure(renderer, data, shown, about)]


def _chart(renderer: NbElementRenderer, data: MimeData, alt: str) -> nodes.Element:
    """A Vega-Lite specification, kept as data in the page and drawn there by ``charts.js``."""
    spec = data.content if isinstance(data.content, dict) else json.loads(data.content)
    env = renderer.renderer.sphinx_env
    if env is not None:
        env.metadata[env.docname][CHARTS] = True
    if not alt:
        log.warning("a Vega-Lite output has no 'alt' in its metadata", location=_place(renderer, data), type="cnnstudy")
    text = json.dumps(spec, separators=(",", ":")).replace("<", "\\u003c")  # no </script> inside
    described = html.escape(alt, quote=True)
    # not myst-nb's class text_html, to which the theme gives a card of its own in dark mode
    return nodes.raw(
        text=f'<div class="cnn-chart" role="img" aria-label="{described}"><div class="cnn-chart-target"></div>'
        f'<script type="application/json">{text}</script><noscript>{described} (The chart needs JavaScript.)</noscript></div>',
        format="html",
        classes=["output", "cnn-output"],
    )


def _figure(renderer: NbElementRenderer, data: MimeData, shown: list[nodes.Element], about: dict[str, Any]) -> nodes.Element:
    """A figure around ``shown``, with its caption as MyST text and its name as a label to refer to."""
    rehearsed = ["cnn-rehearsal"] if show.REHEARSAL in str(about["caption"]) else []
    figure = nodes.figure("", *shown, classes=["cnn-figure", *rehearsed])
    document = renderer.renderer
    figure.source, figure.line = _place(renderer, data)
    if about.get("name"):
        figure["names"].append(nodes.fully_normalize_name(str(about["name"])))
        document.document.note_explicit_target(figure, figure)
    holder = nodes.Element()
    with document.current_node_context(holder):
        document.nested_render_text(str(about["caption"]), data.line or 0)
    children = [child for part in holder.children for child in (part.children if isinstance(part, nodes.paragraph) else [part])]
    figure += nodes.caption("", "", *children)
    return figure


def _place(renderer: NbElementRenderer, data: MimeData) -> tuple[str, int]:
    return renderer.renderer.document["source"], data.line or 0


# formulas ---------------------------------------------------------------------------------------------------------------


def mathml(tex: str, block: bool) -> str:
    """The MathML of a formula.

    Raises:
        MathError: the converter does not know a command; it is named.
    """
    return str(tex2mathml(_NUMBERED.sub(r"\\\1{aligned}", tex), as_block=block))


def _mathml_or_warning(translator: Any, node: nodes.Element, tex: str, block: bool) -> str:
    try:
        return mathml(tex, block)
    except MathError as err:
        log.warning("formula %r: %s", tex, err, location=node, type="cnnstudy")
        return f"<code>{html.escape(tex)}</code>"


def _visit_math(self: Any, node: nodes.math) -> None:
    self.body.append(_mathml_or_warning(self, node, node.astext(), block=False))
    raise nodes.SkipNode


def _visit_math_block(self: Any, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="cnn-math"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append(_mathml_or_warning(self, node, node.astext(), block=True) + "</div>\n")
    raise nodes.SkipNode


# pages ------------------------------------------------------------------------------------------------------------------


def mend_page(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Put right what the theme and its extensions get wrong, and load scripts only where they are needed."""
    if app.env.metadata.get(pagename, {}).get(CHARTS):
        app.add_js_file("vendor/vega.js", priority=600, loading_method="defer")
        app.add_js_file("charts.js", priority=610, loading_method="defer")
    if pagename == pages.BOARD:
        app.add_js_file("board.js", priority=620, loading_method="defer")
    seen: set[str] = set()
    kept = []
    for script in context.get("script_files", ()):
        body = (getattr(script, "attributes", None) or {}).get("body")
        # thebe is off, but its script would come along; others come twice, and a second `const` is an error on each page
        if "thebe" in str(getattr(script, "filename", "") or "") or (body and ("thebe" in body or body in seen)):
            continue
        seen.add(body or "")
        kept.append(script)
    if "script_files" in context:
        context["script_files"][:] = kept
    if "css_files" in context:
        context["css_files"][:] = [css for css in context["css_files"] if "thebe" not in str(getattr(css, "filename", css))]
    if context.get("body"):
        for wrong, right in MENDED:
            context["body"] = context["body"].replace(wrong, right)
        context["body"] = plain_prose(THEBE.sub("", context["body"]))


def plain_prose(body: str) -> str:
    """Pasted values are set in bold (MyST-NB); of whole sentences that would leave nothing to stand out."""
    return SAID.sub(r'<span class="cnn-prose">\1</span>', body)


def forget_leftovers(app: Sphinx) -> None:
    """Remove myst-nb's style sheet of the build before.

    myst-nb writes it after the pages; only where one is left from before do they name its checksum, so that pages
    written later would differ from pages written at once.
    """
    for old in (Path(app.outdir) / "_static").glob("mystnb.*.css"):
        old.unlink()


def write_scripts(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Write Vega's bundle into the site, if a page has a chart: one file of 0.9 MB, made of an installed package.

    Making it takes seconds, so it is kept beside the mirror, by version, for the next build.
    """
    if app.builder.format == "html" and any(page.get(CHARTS) for page in env.metadata.values()):
        import vl_convert

        kept = Path(app.srcdir).parent / f"vega-{version('vl-convert-python')}.js"
        if not kept.exists():
            part = kept.with_suffix(".part")
            part.write_text("(()=>{" + vl_convert.javascript_bundle() + "})();", encoding="utf-8")  # type: ignore[call-arg]
            part.replace(kept)
        target = Path(app.outdir) / "_static" / "vendor" / "vega.js"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kept, target)
    return []  # no page has to be written for it


def tidy_search_index(app: Sphinx, exception: Exception | None) -> None:
    """Drop words that no page has any more: Sphinx keeps them, so that an edited site would differ from a new one."""
    path = Path(app.outdir) / "searchindex.js"
    if exception or app.builder.format != "html" or not path.exists():
        return
    head, body, tail = "Search.setIndex(", path.read_text("utf-8"), ")"
    index = json.loads(body.removeprefix(head).removesuffix(tail))
    for name in ("terms", "titleterms"):
        index[name] = {word: places for word, places in index[name].items() if places != []}
    path.write_text(head + json.dumps(index, sort_keys=True) + tail, encoding="utf-8")


def _environment_version() -> int:
    """A number that changes with this code, so that Sphinx reads all pages anew after an edit of it."""
    here = Path(__file__).parent
    code = b"".join((here / name).read_bytes() for name in ("sphinxext.py", "pages.py", "overview.py", "theme.py"))
    return int.from_bytes(hashlib.sha256(code).digest()[:4], "big")


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_math_block, None))
    pages.register(app)
    overview.register(app)
    app.add_js_file(None, body=FIRST_MODE, priority=100)
    app.connect("html-page-context", mend_page, priority=900)
    app.connect("builder-inited", forget_leftovers)
    app.connect("env-updated", write_scripts)
    app.connect("build-finished", tidy_search_index)
    return {"version": "1", "env_version": _environment_version(), "parallel_read_safe": True, "parallel_write_safe": True}
