"""Images to discrete ids, and back where a tokenizer has a decoder."""

from pantomim.tokenizers.base import Picturing, Tokenizer
from pantomim.tokenizers.loading import load_tokenizer

__all__ = ["Picturing", "Tokenizer", "load_tokenizer"]
