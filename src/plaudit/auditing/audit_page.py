"""The page of an audit: one HTML file without scripts, for a person to read or send on."""

from importlib.resources import files
from typing import Any

from plaudit.auditing.audit import Audit

__all__ = ["audit_page"]


def audit_page(result: Audit) -> str:
    """Return the page of an audit as HTML. Text of the data is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["percent"] = _percent
    template = environment.from_string(files("plaudit.auditing").joinpath("audit.html.jinja").read_text("utf-8"))
    return template.render(audit=result, titles={"longer": "the longer response", "style": "six features of style",
                                                 "bag_of_words": "a bag of words"})  # fmt: skip


def _percent(share: Any) -> str:
    return "-" if share is None or share != share else f"{share:.1%}"
