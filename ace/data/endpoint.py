"""Models behind an OpenAI-compatible endpoint, through the `openai` client: for instructions here, for evaluation's
judge too. Not here: what is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ace.errors import MissingDependencyError
from ace.extras import install_command

if TYPE_CHECKING:
    from openai import OpenAI


def connect(base_url: str, api_key: str = "", timeout_s: float = 60.0, retries: int = 2) -> OpenAI:
    """A client that goes straight to the endpoint: it follows no redirect and no proxy of the environment.

    base_url: up to and including "/v1". api_key: "" = "none" is sent. retries: after a lost connection, 408, 409, 429
    and 5xx, with growing pauses. Raises MissingDependencyError without the client."""
    check_client()
    from openai import DefaultHttpxClient, OpenAI

    return OpenAI(
        base_url=base_url,
        api_key=api_key or "none",
        timeout=timeout_s,
        max_retries=retries,
        http_client=DefaultHttpxClient(trust_env=False, follow_redirects=False),
    )


def check_client() -> None:
    """Raise MissingDependencyError if the client is not installed."""
    try:
        import openai  # noqa: F401
    except ModuleNotFoundError:
        raise MissingDependencyError(
            f"asking an endpoint needs the openai client: {install_command('data')} (or [eval])"
        ) from None
