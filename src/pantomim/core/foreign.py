"""What the errors of other libraries say about a user's file, in words that can be shown."""

import re


def reason(error: BaseException) -> str:
    """At most 200 characters in one line, without places in memory, nor advice to load what can run code."""
    text = " ".join(str(error).split()) or type(error).__name__
    if re.search("allow_pickle|weights_only|trust_remote_code", text):
        return "it would have to run code to be read; nothing of it was run"
    return re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "the file", text)[:200]
