"""How Sphinx makes these pages, and the directive that lists the events as the code has them."""

from __future__ import annotations

import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parents[1]))

import async_trainer
from async_trainer.events import ARGUMENTS, Event

project = "async_trainer"
version = release = async_trainer.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
templates_path: list[str] = []

html_theme = "furo"
html_title = f"async_trainer {release}"
html_copy_source = False
html_show_copyright = False
html_static_path: list[str] = ["_static"]
html_css_files = ["pages.css"]

myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 120
napoleon_google_docstring = True
napoleon_numpy_docstring = False
add_module_names = False
toc_object_entries_show_parents = "hide"


class EventTable(SphinxDirective):
    """``events``: a row for each event, with its arguments. ``event-arguments``: what each argument is."""

    def run(self) -> list[nodes.Node]:
        if self.name == "event-arguments":
            rows = [(f"``{name}``", text) for name, text in ARGUMENTS.items()]
            return self.table(("argument", "what it is"), rows, widths=(1, 4))
        always = set.intersection(*(set(event.arguments) for event in Event))
        rows = [
            (f"``{event.value}``", event.summary, " ".join(f"``{a}``" for a in event.arguments if a not in always))
            for event in Event
        ]
        return self.table(("hook", "when", "further arguments"), rows, widths=(5, 6, 6))

    def table(self, head: tuple[str, ...], rows: list[tuple[str, ...]], widths: tuple[int, ...]) -> list[nodes.Node]:
        lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {' '.join(map(str, widths))}", ""]
        for row in (head, *rows):
            lines += [f"   {'* -' if place == 0 else '  -'} {cell}" for place, cell in enumerate(row)]
        return self.parse_text_to_nodes("\n".join(["```{eval-rst}", *lines, "```"]))


def setup(app: Sphinx) -> None:
    app.add_directive("events", EventTable)
    app.add_directive("event-arguments", EventTable)
