"""Whether our modules compute what the official code computes, shown on golden tensors."""

from pantomim.parity.verification import ItemResult, format_results, verify

__all__ = ["ItemResult", "format_results", "verify"]
