"""HTML of which nothing can break out: every text is escaped on its way into an element."""

import base64
import html
import importlib.resources
import io
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

THUMBNAIL = 96  # pixels, the most; smaller images stay as they are


class Html(str):
    """Text that is HTML already. All other text that goes into an element is escaped."""


def element(tag: str, /, *children, **attributes) -> Html:
    """`<name attribute="value">children</name>`; a child or value that is None is left out, `class_` is `class`."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    head = " ".join([tag, *(f'{key}="{html.escape(str(value))}"' for key, value in given.items())])
    if tag in ("img", "meta", "link"):
        return Html(f"<{head}>")
    return Html(f"<{head}>{joined(*children)}</{tag}>")


def joined(*children) -> Html:
    texts = (child if isinstance(child, Html) else html.escape(str(child)) for child in children if child is not None)
    return Html("".join(texts))


def document(title: str, lead: Html, sections: dict[str, Html | None]) -> Html:
    """The whole page: title and lead, links to the sections, the sections by their titles but those that are None."""
    sections = {name: content for name, content in sections.items() if content}
    anchors = {name: re.sub(r"\W+", "-", name.lower()) for name in sections}
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),  # else a browser asks the server for one
        element("title", title),
        element("style", Html((importlib.resources.files("basisnet_jax.report") / "style.css").read_text())),
    )
    body = element(
        "body",
        element("header", element("h1", title), lead),
        element("nav", *(element("a", name, href=f"#{anchors[name]}") for name in sections), aria_label="Sections"),
        element(
            "main",
            *(element("section", element("h2", name), content, id=anchors[name]) for name, content in sections.items()),
        ),
    )
    return Html(f"<!doctype html>\n{element('html', head, body, lang='en')}\n")


def table(header: Sequence[str], rows: Sequence[Sequence], *, texts: int = 1, caption: str | None = None) -> Html:
    """A table that scrolls by itself where it is too wide. All columns but the first `texts` are numbers."""

    def row(name, cells):
        sides = ("text" if i < texts else "number" for i in range(len(cells)))
        return element("tr", *(element(name, cell, class_=side) for cell, side in zip(cells, sides, strict=True)))

    content = element(
        "table",
        element("thead", row("th", header)),
        element("tbody", *(row("td", cells) for cells in rows)),
    )
    scrolled = element("div", content, class_="scroll", tabindex=0)  # focusable: the keyboard can scroll it
    return element("figure", element("figcaption", caption), scrolled) if caption else scrolled


def terms(pairs: dict) -> Html:
    """Names with their values, as many side by side as there is room for."""
    rows = (element("div", element("dt", name), element("dd", value)) for name, value in pairs.items())
    return element("dl", *rows)


def folded(summary: str, *children) -> Html:
    return element("details", element("summary", summary), *children)


def picture(svg: str, title: str, caption: str, alt: str) -> Html:
    """A figure: what it is and what to see in it, above the drawing."""
    source = data_uri("image/svg+xml", svg.encode())
    text = element("figcaption", element("strong", title), caption)
    return element("figure", text, element("img", src=source, alt=alt))


def figures(*children) -> Html:
    """Figures side by side where there is room."""
    return element("div", *children, class_="figures")


def thumbnail(image: np.ndarray) -> str:
    """An image, uint8 [H, W, 1 or 3], as a data URI: small ones pixel for pixel, larger ones as a JPEG."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    small = max(picture.size) <= THUMBNAIL
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    if small:
        picture.save(file, "PNG", optimize=True)
    else:
        picture.save(file, "JPEG", quality=80)
    return data_uri("image/png" if small else "image/jpeg", file.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def percent(fraction: float, digits: int = 2) -> str:
    return f"{100 * fraction:.{digits}f}\N{NO-BREAK SPACE}%"


def millions(madds: float) -> str:
    return f"{madds / 1e6:.2f}M"
