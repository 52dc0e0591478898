"""SVG elements as escaped text, and the one style sheet that all plots share."""

from __future__ import annotations

from markupsafe import Markup, escape

MARGIN = 14  # of a plot that stands alone; a page has its own
SERIES = 8  # colours; shapes repeat with another period, so that the pair tells 40 series apart

# Blue, vermilion, green, purple, amber, indigo, grey, wine: told apart by red-green and blue-yellow colour-blind eyes,
# each at least 3:1 against its background.
LIGHT = ("#0072b2", "#c9510c", "#00875f", "#a8429a", "#946a00", "#4b3fb5", "#66666e", "#8a1f4f")
DARK = ("#5ab4f0", "#ff9357", "#35c9a0", "#e391d4", "#e3b341", "#a99dff", "#b3b3ba", "#f2789f")

_COLOURS = ".f{0}{{fill:var(--c{0})}}.s{0}{{stroke:var(--c{0})}}.plot text.f{0}{{fill:var(--c{0})}}"

STYLE = """
.plot{font:12.5px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
.plot{font-variant-numeric:tabular-nums}
.plot text{fill:var(--ink-2)}
.plot .strong{fill:var(--ink);font-weight:600}
.plot .faint{fill:var(--ink-3);font-size:11px}
.plot .grid{stroke:var(--line);stroke-width:1}
.plot .axis{stroke:var(--ink-3);stroke-width:1}
.plot .dense{stroke:var(--ink-2);stroke-width:1.5;stroke-dasharray:5 4;fill:none}
.plot .leader{stroke:var(--ink-3);stroke-width:1;stroke-dasharray:1 3;fill:none}
.plot .curve{fill:none;stroke-width:2.25;stroke-linejoin:round;stroke-linecap:round}
.plot .dot{stroke:var(--surface);stroke-width:1.5}
.plot .ring{fill:none;stroke-width:2}
.plot .whisker{stroke-width:1.25;fill:none}
""" + "".join(_COLOURS.format(i) for i in range(SERIES))


def variables(dark: bool = False) -> str:
    """The colours that `STYLE` and the page refer to."""
    ink = (
        ("--ink:#f3eef2;--ink-2:#c3bac2;--ink-3:#978d97;--line:#363039;--surface:#1c191f")
        if dark
        else ("--ink:#211a21;--ink-2:#5a505a;--ink-3:#7c727c;--line:#e7e1e4;--surface:#ffffff")
    )
    return ink + "".join(f";--c{i}:{colour}" for i, colour in enumerate(DARK if dark else LIGHT))


def number(value: int | float) -> str:
    """Coordinates to a hundredth, without trailing zeros."""
    return f"{round(value, 2) + 0.0:.2f}".rstrip("0").rstrip(".")


def el(tag: str, /, *children: str, **attributes: str | int | float | None) -> Markup:
    """One element; what is not Markup is escaped. `class_` is written class, `stroke_width` stroke-width."""
    given = {
        name.rstrip("_").replace("_", "-"): number(value) if isinstance(value, float) else value
        for name, value in attributes.items()
        if value is not None
    }
    written = Markup("").join(Markup(' {}="{}"').format(name, value) for name, value in given.items())
    if not children:
        return Markup("<{}{}/>").format(Markup(tag), written)
    inner = Markup("").join(escape(child) for child in children)
    return Markup("<{}{}>{}</{}>").format(Markup(tag), written, inner, Markup(tag))


def tip(text: str) -> Markup:
    """What a browser shows when the pointer rests on the element around it."""
    return el("title", text)


def marker(
    shape: int, x: int | float, y: int | float, *children: str, size: int | float = 4.5, class_: str = ""
) -> Markup:
    """Circle, square, diamond, triangle, upside-down triangle: of about the same area."""
    kind = shape % 5
    if kind == 0:
        return el("circle", *children, class_=class_, cx=x, cy=y, r=size)
    if kind == 1:
        side = size * 0.9
        return el("rect", *children, class_=class_, x=x - side, y=y - side, width=2 * side, height=2 * side)
    corners = {
        2: ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        3: ((0, -1.25), (1.2, 0.95), (-1.2, 0.95)),
        4: ((0, 1.25), (1.2, -0.95), (-1.2, -0.95)),
    }[kind]
    path = "M" + "L".join(f"{number(x + size * dx)} {number(y + size * dy)}" for dx, dy in corners) + "Z"
    return el("path", *children, class_=class_, d=path)


def standalone(body: Markup, width: int | float, height: int | float, label: str) -> str:
    """A file of its own: with its style, its colours for light and dark, and a background."""
    style = (
        f"svg{{{variables()}}}@media (prefers-color-scheme:dark){{svg{{{variables(dark=True)}}}}}"
        f".paper{{fill:var(--surface)}}{STYLE}"
    )
    across, down = width + 2 * MARGIN, height + 2 * MARGIN
    paper = el("rect", class_="paper", x=-MARGIN, y=-MARGIN, width=across, height=down, rx=8)
    return str(
        Markup('<?xml version="1.0" encoding="UTF-8"?>\n')
        + el(
            "svg",
            el("title", label),
            el("style", Markup(style.replace("&", "&amp;").replace("<", "&lt;"))),
            paper,
            body,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"{-MARGIN} {-MARGIN} {number(across)} {number(down)}",
            width=number(across),
            height=number(down),
            role="img",
            class_="plot",
        )
        + Markup("\n")
    )


def inline(body: Markup, width: int | float, height: int | float, label: str, class_: str = "") -> Markup:
    """For a page that has `STYLE` and the colours once."""
    return el(
        "svg",
        body,
        viewBox=f"0 0 {number(width)} {number(height)}",
        width=float(width),
        height=float(height),
        role="img",
        aria_label=label,
        class_=f"plot {class_}".strip(),
    )
