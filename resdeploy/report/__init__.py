"""Reports for people, in HTML, Markdown and text, from bundles and JSON documents."""
