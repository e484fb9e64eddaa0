"""Which proxy and which certificate authorities count: settings first, then the environment."""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from requests.utils import (
    DEFAULT_CA_BUNDLE_PATH,
    get_environ_proxies,
    prepend_scheme_if_needed,
    select_proxy,
    should_bypass_proxies,
)

from .. import validation

__all__ = ["ca_bundle", "ca_path", "chosen_proxy", "proxies", "without_credentials"]


def proxies(url: str, proxy: str | None, *, no_proxy: bool) -> dict[str, str]:
    """Return the proxies for a URL, by scheme; empty: none.

    Args:
        url: What is asked for.
        proxy: For every URL; `None`: those of the standard variables.
        no_proxy: True: `proxy` is not for hosts that ``NO_PROXY`` names.
    """
    if proxy is None:
        return get_environ_proxies(url)
    if no_proxy and should_bypass_proxies(url, None):
        return {}
    return {"http": proxy, "https": proxy}


def chosen_proxy(url: str, found: Mapping[str, str]) -> str:
    """Return the proxy for a URL in the spelling of `requests`' adapters; empty: none.

    Raises:
        InvalidRequestError: It cannot be used.
    """
    proxy = select_proxy(url, dict(found))
    if not proxy:
        return ""
    proxy = validation.proxy(proxy if "://" in proxy else f"http://{proxy}")
    return str(prepend_scheme_if_needed(proxy, "http"))


def without_credentials(proxy: str) -> str:
    """Return host and port of a proxy, to be shown; empty: there is none."""
    return urlsplit(proxy).netloc.rpartition("@")[2]


def ca_bundle(verify: bool | str) -> bool | str:
    """Return `verify`, where True means a bundle or folder that the environment names, if any."""
    if verify is not True:
        return verify
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        if path := os.environ.get(name):
            return validation.verify(path)
    folders = os.environ.get("SSL_CERT_DIR", "").split(os.pathsep)  # as OpenSSL reads it
    return next((folder for folder in folders if Path(folder).is_dir() and folder), True)


def ca_path(verify: bool | str) -> str | None:
    """Return the file or folder of authorities; `None`: any certificate will do."""
    found = ca_bundle(verify)
    if found is False:
        return None
    return DEFAULT_CA_BUNDLE_PATH if found is True else str(found)
