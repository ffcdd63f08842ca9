"""Pages in HTML and Markdown, made of blocks: text, tables, plots. They depend on no results."""
