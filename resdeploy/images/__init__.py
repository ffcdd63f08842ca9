"""Images: decoding, pre-processing, and folders of labelled files."""
