"""Pages in HTML and Markdown, made of blocks (text, tables, plots) about any subject."""
