"""Sphinx configuration."""

project = "ompaffinity"
author = "The ompaffinity maintainers"
copyright = f"2026, {author}"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]
html_theme = "furo"
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
nitpicky = False
man_pages = [
    ("reference", "ompaffinity", "plan, bind and verify the CPUs and the memory of inference workers", author, 1)
]
