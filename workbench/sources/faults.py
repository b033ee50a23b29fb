"""What can go wrong between here and the Hub, each with its own words: what happened, where, and what to do.

Covers the errors of huggingface_hub 1.x and 2.x and of the HTTP library beneath it (httpx or httpx2), told as ``ModelError``.
Decides nothing about retrying (``ranges.py``).
"""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from workbench.errors import Gated, ModelError, NotListed, Unreachable
from workbench.sources.header import shown

# httpx.HTTPError with huggingface_hub 1.x, httpx2.HTTPError with 2.x: what a request raises that got no answer.
HTTP_ERROR: type[Exception] = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
_LOG_IN = "log in ('hf auth login', or huggingface_hub.login() in a notebook) or pass token="
_RESET = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)")


def host() -> str:
    """The Hub's host, as huggingface_hub was told of it."""
    return urlsplit(constants.ENDPOINT).netloc


def as_model_error(error: Exception, repo: str, where: str = "") -> ModelError:
    """The error as one that its reader can act on. ``where`` is the file that was asked for, else the repository."""
    if isinstance(error, ModelError):
        return error
    place = where or repo
    if isinstance(error, HFValidationError):
        remedy = "A model on the Hub is named owner/name, a folder by its path; 'builtin' is the embedded model."
        return ModelError("It is no name that a model on the Hub can have.", where=shown(repo, 300), remedy=remedy)
    if isinstance(error, OfflineModeIsEnabled):
        what = "Offline mode is on (HF_HUB_OFFLINE), and this is not on this machine yet."
        remedy = "Unset HF_HUB_OFFLINE and restart Python, or open a model that is here."
        return Unreachable(what, where=place, remedy=remedy)
    if isinstance(error, (HfHubHTTPError, EntryNotFoundError)):
        return _answered(error, repo, place)
    if isinstance(error, HTTP_ERROR):
        return _unanswered(error, place)
    if isinstance(error, ValueError):
        return no_hub(error, place)
    if isinstance(error, OSError) and error.filename:  # no file is written but in its cache
        what = f"Hugging Face's cache cannot be written ({error.strerror})."
        remedy = "Set HF_HOME to a folder that can be written, or make room there, and restart Python."
        return ModelError(what, where=shown(str(error.filename), 300), remedy=remedy)
    return ModelError(f"{type(error).__name__}: {shown(str(error), 200)}.", where=place, remedy="Try again.")


def no_hub(error: Exception, place: str) -> ModelError:
    """The error of an answer that makes no sense."""
    what = f"What {host()} answered is not what a Hub answers ({type(error).__name__})."
    return ModelError(what, where=place, remedy="Check HF_ENDPOINT, and whether a proxy or login page is in between.")


def status(error: Exception) -> int:
    """The HTTP status behind an error, 0 where there was none."""
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def wait_asked(response: Any) -> float | None:
    """Seconds that a server asks to wait: Retry-After as a number or a date, or the Hub's own RateLimit header."""
    value = str(response.headers.get("Retry-After", "")).strip()
    if value.isdecimal():
        return float(value[:9])
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        moment = parsedate_to_datetime(value)
        return max(0.0, (moment - datetime.now(moment.tzinfo or UTC)).total_seconds())
    reset = _RESET.search(str(response.headers.get("RateLimit", "")))
    return float(reset[1][:9]) if reset else None


def _answered(error: Exception, repo: str, place: str) -> ModelError:
    code, page = status(error), f"{constants.ENDPOINT}/{repo}"
    if isinstance(error, GatedRepoError):
        if code == 401:
            what = "It is gated: its owner asks readers to log in and accept terms, and you are not logged in."
        else:
            what = "It is gated: its owner asks readers to accept terms, and this account has no access yet."
        return Gated(what, where=repo, remedy=f"Accept the terms at {page}, then {_LOG_IN}.")
    if isinstance(error, DisabledRepoError):
        return ModelError("The Hub has disabled this repository.", where=place, remedy="Choose another model.")
    if isinstance(error, RevisionNotFoundError):
        what = "It has no such revision."
        return ModelError(what, where=place, remedy=f"Branches, tags and commits are listed at {page}/tree/main.")
    if isinstance(error, EntryNotFoundError):
        what = "It has no such file at this revision."
        return ModelError(what, where=place, remedy="Open the model again: it may have changed.")
    if isinstance(error, RepositoryNotFoundError) or code in (401, 404):
        return _not_listed(error, code, repo)
    if code == 403:
        what = f"{host()} forbids reading it (403)."
        return ModelError(what, where=place, remedy="Use a token that may read this repository's contents.")
    if code == 429:
        seconds = wait_asked(getattr(error, "response", None))
        soon = f"Wait {seconds:,.0f} seconds" if seconds else "Wait some minutes"
        what = f"{host()} limits how often it may be asked, and the limit is reached (429)."
        return ModelError(what, where=place, remedy=f"{soon} and try again; who is logged in may ask more often.")
    if code >= 500:
        what = f"{host()} has a fault of its own ({code})."
        return ModelError(what, where=place, remedy="Try again later.")
    return ModelError(f"{host()} refused the request ({code}).", where=place, remedy="Check HF_ENDPOINT and the model's name.")


def _not_listed(error: Exception, code: int, repo: str) -> ModelError:
    message = str(getattr(getattr(error, "response", None), "headers", {}).get("X-Error-Message", ""))
    if message == "Invalid credentials in Authorization header":
        remedy = f"Make a new token at {constants.ENDPOINT}/settings/tokens, then {_LOG_IN}."
        return ModelError(f"{host()} does not accept the token.", where=repo, remedy=remedy)
    remedy = f"Check the spelling. To read a private model, {_LOG_IN} of an account that may."
    if code == 401:
        what = f"{host()} has no such model, or it is private and you are not logged in; and there is no such folder."
    else:
        what = f"{host()} has no such model that this reader may see, and there is no such folder."
    return NotListed(what, where=repo, remedy=remedy)


def _unanswered(error: Exception, place: str) -> ModelError:
    kinds = {base.__name__ for base in type(error).__mro__}
    if "ConnectError" in kinds or "ProxyError" in kinds:
        what = f"{host()} cannot be reached: there is no network, or none that leads there."
        return Unreachable(what, where=place, remedy="Check the connection, the proxy settings and HF_ENDPOINT.")
    if "TimeoutException" in kinds:
        what = f"{host()} did not answer within {constants.HF_HUB_DOWNLOAD_TIMEOUT} seconds."
        return Unreachable(what, where=place, remedy="Try again, or set HF_HUB_DOWNLOAD_TIMEOUT higher.")
    what = f"The connection broke off again and again ({type(error).__name__})."
    return ModelError(what, where=place, remedy="Try again: what has arrived is kept.")
