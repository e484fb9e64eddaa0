"""A request as a curl command, to be tried by hand or put into a bug report."""

import json
import shlex

__all__ = ["curl_command"]


def curl_command(endpoint: str, task_id: str | None) -> str | None:
    """Return the command for an endpoint such as ``"POST https://host/progress"``.

    Cookies, keys and prompts are not in it: placeholders stand for them.

    Args:
        endpoint: Method and URL.
        task_id: The task that was asked for; `None`: not known.

    Returns:
        `None` if the endpoint names no URL.
    """
    method, _, url = endpoint.partition(" ")
    if "://" not in url:
        return None
    words = ["curl", "-sS", "-i", "-X", method, url]
    if method == "POST":
        task = {"task_id": task_id or "TASK"}
        body = {"prompt": "PROMPT"} if url.endswith("/txt2img") else task
        words += ["-H", "content-type: application/json", "-d", json.dumps(body)]
    return shlex.join(words)
