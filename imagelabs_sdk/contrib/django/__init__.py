"""ImageLabs in Django: settings, clients, and jobs that outlive a request.

``client`` is the client of the alias "default", ``clients["other"]`` that of another; see
`clients.Clients`. Everything else is imported from its own module: `models`, `lifecycle`, `sweep`,
`views`, `urls`, `signals`.
"""

from imagelabs_sdk._extras import needs_extra

with needs_extra("django"):
    from .clients import client, clients

__all__ = ["client", "clients"]
