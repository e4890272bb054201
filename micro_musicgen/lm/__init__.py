"""The language model over codes: its sizes and how it is built."""
