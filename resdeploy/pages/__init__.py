"""Pages in HTML and Markdown, made of blocks: text, tables, plots. They know no results."""
