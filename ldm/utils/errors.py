"""What a user sees when something is wrong: one readable line and exit code 2, never a traceback."""

import re


class UserError(Exception):
    """An error that the user can fix. The message says what came, what is allowed and what to do next, in one line."""


# what may stand in an address or a setting and must not be shown again
SECRETS = (
    (re.compile(r"(?<=://)[^/\s@]+(?=@)"), "***"),  # https://user:password@host
    (re.compile(r"(?i)([?&][\w-]*(?:token|key|secret|signature|password|credential)=)[^&\s'\"]+"), r"\1***"),
    (re.compile(r"\bhf_[A-Za-z0-9]{12,}"), "hf_***"),
)


def redacted(text: str) -> str:
    """`text` without passwords in addresses, signatures in queries and tokens of the Hub."""
    for pattern, put in SECRETS:
        text = pattern.sub(put, text)
    return text


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, by torch (on any device) or by Python."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(each in str(error).lower() for each in words)
