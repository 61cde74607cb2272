"""The bearer token as it may stand in an HTTP header (RFC 6750).

A token with a line end or a letter beyond ASCII would only be refused while a request is being written, by an error
that quotes it; so it is looked at before, by one that does not.
"""

from __future__ import annotations


def clean_token(token: str) -> str:
    """The token without white space around it; "" if there is none.

    Raises:
        ValueError: it holds anything but printable ASCII. The message does not quote it.
    """
    token = token.strip()
    if not (token.isascii() and token.isprintable()):
        raise ValueError(
            "the token for the reward server holds a character that is not printable ASCII, such as a line end or an "
            "accented letter; correct the environment variable AWM_REWARD_TOKEN, or reward_server.token."
        )
    return token
