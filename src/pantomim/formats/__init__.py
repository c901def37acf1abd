"""Reading and writing weights: our own files, and the layouts of others."""

from pantomim.formats.loading import load_encoder

__all__ = ["load_encoder"]
