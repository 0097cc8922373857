"""What self-contained HTML pages are made of: the document, plots as SVG, small photos."""
