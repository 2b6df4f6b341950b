"""The model library: proof that the language expresses the literature, in the public API only."""
