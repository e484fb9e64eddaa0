"""The certificate authorities that this machine trusts, by `truststore`: an extra."""

import ssl

import truststore

__all__ = ["system_context"]


def system_context() -> ssl.SSLContext:
    """Return a TLS context that asks the operating system which authorities it trusts."""
    return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
