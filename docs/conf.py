"""Sphinx's configuration of the site. `make docs` lays its pages out, see docs/site/build.py."""

import feedax

project = "feedax"
author = copyright = "The feedax authors"
version = release = feedax.__version__
html_title = f"feedax {release}"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]

# Headings have the anchors that they have on GitHub.
myst_heading_anchors = 4
# The notebook is stored with the outputs that its text speaks of; build_tutorial.py runs it.
nb_execution_mode = "off"

# A fence without a language is what a program prints.
highlight_language = "none"

# In a docstring, a name in single backticks is a link where it is one of feedax's.
default_role = "py:obj"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_use_ivar = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_extra_path = ["extra"]
html_copy_source = False
html_show_sphinx = False
# A page from a file may not fetch the pages that a search finds.
html_show_search_summary = False
html_theme_options = {"top_of_page_buttons": []}

# For `make docs-links`. GitHub makes the anchors of its pages by a script.
linkcheck_anchors_ignore_for_url = [r"https://github\.com/.*"]


def setup(app):
    app.connect("autodoc-process-signature", without_inherited_signature)


def without_inherited_signature(app, what, name, value, options, signature, returned):
    """An error that takes what its base takes is shown by its name alone."""
    is_inherited = what == "exception" and signature and "__init__" not in vars(value)
    return ("", "") if is_inherited else None
