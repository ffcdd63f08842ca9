"""What people read of results: one page, Markdown, tables. From bundles and JSON documents."""
