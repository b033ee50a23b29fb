"""What the Hub says of a repository: the commit, its files with their sizes, and the licence; and the licence a folder names.

Covers asking for it, keeping it for a time without network, and checking it: names and sizes are whatever a server sent. A
licence is a short name to show, from a card's front matter or a licence file's first line; what it allows is not judged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from threading import Event
from typing import Any

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url

from workbench.errors import ModelError
from workbench.sources.cache import Cache
from workbench.sources.faults import no_hub
from workbench.sources.files import check_name
from workbench.sources.header import shown
from workbench.sources.ranges import persist

_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_CONTENT = re.compile(r"[0-9a-f]{40,64}")
_MOST_FILES = 200_000


@dataclass(frozen=True)
class HubFile:
    """One file of a repository."""

    size: int | None
    """Bytes; None where the server did not say."""
    content: str
    """What its content is known by, on the server and in Hugging Face's cache: sha256 or git's hash; or empty."""


@dataclass(frozen=True)
class Listing:
    """A repository at one commit."""

    repo: str
    commit: str
    files: Mapping[str, HubFile]
    licence: str

    def to_json(self) -> bytes:
        """The listing as ``remembered`` reads it back."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> Listing:
        """What ``to_json`` gave."""
        values = json.loads(raw)
        files = {name: HubFile(**file) for name, file in values.pop("files").items()}
        return cls(files=files, **values)


def ask(repo: str, revision: str | None, token: str | None, stop: Event) -> Listing:
    """The repository as the Hub lists it now; ``as_model_error``'s errors where it does not."""

    def info() -> Any:
        return HfApi().model_info(
            repo, revision=revision, files_metadata=True, token=token, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )

    try:
        found = persist(info, lambda: 0, stop, repo)
        files = {file.rfilename: _file(file) for file in found.siblings or ()}
        if not _COMMIT.fullmatch(found.sha) or not all(isinstance(name, str) for name in files) or len(files) > _MOST_FILES:
            raise ValueError("no commit, or no listing")
        card = found.card_data.to_dict() if found.card_data is not None else {}
        return Listing(repo, found.sha, files, of_card(card, found.tags or ()))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise no_hub(error, repo) from error


def size_of(listing: Listing, file: str, token: str | None, stop: Event) -> int:
    """The size of a file that the listing names, asked for where the listing does not give it; ModelError if it names none."""
    check_name(file, listing.repo)
    known = listing.files.get(file)
    if known is None:
        remedy = "Choose another revision: at this one the repository is incomplete."
        raise ModelError(f"The file {shown(file)} is missing.", where=listing.repo, remedy=remedy)
    if known.size is not None:
        return known.size
    url = hf_hub_url(listing.repo, file, revision=listing.commit)
    found = persist(lambda: get_hf_file_metadata(url, token=token), lambda: 0, stop, listing.repo, f"{listing.repo}/{file}")
    if found.size is None:
        where = f"{listing.repo}/{file}"
        raise ModelError("The server does not say how large it is.", where=where, remedy="Check HF_ENDPOINT.")
    return found.size


def keep(cache: Cache, listing: Listing, revision: str | None) -> None:
    """Remember the listing for a time when the Hub cannot be asked."""
    cache.put(_key(listing.repo, revision), listing.to_json())


def remembered(cache: Cache, repo: str, revision: str | None) -> Listing | None:
    """What was kept, if anything."""
    raw = cache.get(_key(repo, revision))
    return Listing.from_json(raw) if raw is not None else None


def _key(repo: str, revision: str | None) -> str:
    return f"listing 1\n{constants.ENDPOINT}\n{repo}\n{revision or constants.DEFAULT_REVISION}"


def _file(file: Any) -> HubFile:
    large = file.lfs
    size, content = (large.size, large.sha256) if large is not None else (file.size, file.blob_id)
    if size is not None and (type(size) is not int or not 0 <= size < 2**63):
        raise ValueError("a size that is none")
    return HubFile(size, content if isinstance(content, str) and _CONTENT.fullmatch(content) else "")


ENOUGH = 1 << 16
"""Bytes from the beginning of a card or licence file that are looked at."""
_LONGEST = 80
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---", re.DOTALL)
_FIELD = re.compile(r"^(license|license_name):[ \t]*([^\n#]+)", re.MULTILINE)
_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "COPYING")


def of_folder(names: Collection[str], head: Callable[[str], bytes]) -> str:
    """What the folder's card or licence file names; ``head`` gives the first ``ENOUGH`` bytes of one of ``names``."""

    def text(file: str) -> str:
        try:
            return head(file).decode("utf-8", "replace") if file in names else ""
        except ModelError:  # a link out of the folder, say: the model itself may still be read
            return ""

    card = _FRONT_MATTER.match(text("README.md"))
    named = _chosen(dict(_FIELD.findall(card[1]))) if card else ""
    if named:
        return named
    lines = (line.strip("# \t") for file in _FILES for line in text(file).splitlines())
    return next((clean for line in lines if (clean := _clean(line))), "")


def of_card(card: Mapping[str, Any], tags: Iterable[Any]) -> str:
    """What the Hub says: the card's fields, or a ``license:`` tag."""
    if named := _chosen(card):
        return named
    return next((_clean(tag.partition(":")[2]) for tag in tags if isinstance(tag, str) and tag.startswith("license:")), "")


def _chosen(card: Mapping[str, Any]) -> str:
    licence, name = (card.get(field) for field in ("license", "license_name"))
    if isinstance(licence, list):
        licence = ", ".join(part for part in licence if isinstance(part, str))
    named, own = (_clean(value) if isinstance(value, str) else "" for value in (licence, name))
    return own or named if named in ("", "other") else named


def _clean(text: str) -> str:
    """Printable and of bounded length; quotes of YAML taken off."""
    kept = "".join(char for char in text[: 4 * _LONGEST] if char.isprintable()).strip().strip("\"'[]")
    return kept if len(kept) <= _LONGEST else f"{kept[:_LONGEST]}…"
