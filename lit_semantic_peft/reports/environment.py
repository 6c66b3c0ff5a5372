"""How the templates of pages are read, for the report and for the audit."""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape


def environment(*packages: str) -> Environment:
    """The templates of this package, with escaping of every value and the filter `code`.

    Args:
        packages: Packages whose own templates come first.
    """
    places = [PackageLoader(package, package_path=".") for package in (*packages, "lit_semantic_peft.reports")]
    found = Environment(
        loader=ChoiceLoader(places),
        autoescape=True,  # every value of the page is text unless this package says otherwise
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["code"] = _code
    return found


def _code(text: str) -> Markup:
    """Text in which what stands between backticks is shown as code."""
    parts = (escape(part) for part in text.split("`"))
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))
