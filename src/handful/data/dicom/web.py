"""DICOMweb archives: series found by QIDO-RS, fetched by WADO-RS and stored by STOW-RS (DICOM PS3.18)."""

from __future__ import annotations

import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from handful.data.dicom.sources import silenced
from handful.data.verified import MAX_BYTES
from handful.errors import ArchiveError, HandfulError, InputError, SettingsError, UnsupportedInput, did_you_mean

SCHEME = "dicomweb:"
"""Start of an address of an archive, before http:// or https://."""
TOKEN = "HANDFUL_DICOMWEB_TOKEN"
"""Environment variable with the token: sent as `Bearer TOKEN`, or unchanged if it has two words (`Basic dXNlcg==`)."""
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each further attempt."""
NO_IMAGES = {"SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "REG", "FID", "DOC", "AU", "ECG"}
"""Modalities of series that are no scans."""
_USUAL = ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "StudyDate", "SeriesDescription", "PatientID")
_TIMEOUT = (10.0, 120.0)
"""Seconds for the connection, and between two pieces of an answer."""
_PAGE = 200
_MAX_LIST = 2**28
"""Maximum number of bytes of an answer that is no series."""
_PASSING = (408, 425, 429, 500, 502, 503, 504)
"""HTTP states that may pass."""
_COMPARED = ("UI", "CS", "PatientID", "AccessionNumber")
"""Kinds of values, and keywords, that a series has as the query states them; free text may be searched more loosely."""
_UID = re.compile(r"[0-9][0-9.]{0,63}")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Query:
    """Where an archive is, and which of its series are meant."""

    url: str
    """Of the DICOMweb service, without a query."""
    filters: Mapping[str, str]
    """Values by DICOM keyword, as QIDO-RS matches them."""


@dataclass(frozen=True, order=True)
class Series:
    """A series in an archive."""

    study: str
    uid: str
    modality: str


def parse_query(address: str) -> Query:
    """The parts of `dicomweb:https://HOST/dicom-web?Modality=CT&StudyDate=20260101-20260131`.

    Raises SettingsError if it is malformed, holds a password, or names no series.
    """
    if find_spec("dicomweb_client") is None:
        raise UnsupportedInput("DICOMweb needs dicomweb-client; run pip install 'handful[dicom]'")
    try:
        parts = urlsplit(address.removeprefix(SCHEME))
        malformed = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:  # of an impossible port
        malformed = True
    if malformed:
        raise SettingsError(f"not an address of DICOMweb; write {SCHEME}https://HOST/dicom-web?Modality=CT")
    if "#" in address:
        raise SettingsError("a # ends the query, and what is behind it has no effect; write %23 for a # in a value")
    if parts.username or parts.password:
        raise SettingsError(f"a password in the address could be recorded; put it into {TOKEN} (see the how-to page)")
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    _require_filters(pairs)
    return Query(urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", "")), dict(pairs))


def _require_filters(pairs: Sequence[tuple[str, str]]) -> None:
    from pydicom.datadict import tag_for_keyword

    if not pairs:
        raise SettingsError(f"the address names no series; add a query such as ?{_USUAL[0]}=1.2.3 or ?Modality=CT&...")
    keys = [key for key, _ in pairs]
    for key, value in pairs:
        if tag_for_keyword(key) is None:
            raise SettingsError(
                f"{key[:64]!r} in the query is no DICOM keyword; {did_you_mean(key, _USUAL)}known are "
                f"{', '.join(_USUAL)} and others"
            )
        if not value or keys.count(key) > 1:
            raise SettingsError(f"{key} in the query needs one value; write {key}=VALUE")


class Archive:
    """A DICOMweb service. Requests are repeated after failures that may pass, with growing waits.

    After an unsuccessful request for lack of a connection, later ones are tried once only, until one succeeds.
    Messages hold neither the token nor values of the query.
    """

    def __init__(self, url: str, token: str | None = None, waits: Sequence[float] = WAITS) -> None:
        parts = urlsplit(url)
        if token and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise SettingsError(f"{TOKEN} is set, but http:// sends it unencrypted; use https://, or unset {TOKEN}")
        self._place = parts.netloc
        self._client = _client(url, token)
        self._waits = tuple(waits)
        self._is_down = False

    def search(self, filters: Mapping[str, str]) -> list[Series]:
        """The series that match, sorted; without those that are no scans, unless the filters name a modality.

        Raises ArchiveError if one of them does not match: archives ignore filters that they do not support.
        """

        def page(offset: int) -> list[Any]:
            return list(
                self._client.search_for_series(
                    search_filters=dict(filters), fields=["StudyInstanceUID", "Modality"], limit=_PAGE, offset=offset
                )
            )

        found = self._all_pages("the search for series", page, "0020000E")
        for keyword, wanted in filters.items():
            if not all(_may_match(entry, keyword, wanted) for entry in found.values()):
                raise ArchiveError(
                    f"{self._place} lists series of another {keyword} than that of the query, so it ignores it; "
                    "take another keyword, such as StudyInstanceUID or SeriesInstanceUID"
                )
        series = [Series(_uid(entry, "0020000D"), uid, _value(entry, "00080060")) for uid, entry in found.items()]
        return sorted(one for one in series if "Modality" in filters or one.modality not in NO_IMAGES)

    def instances(self, series: Series) -> list[str]:
        """The SOP instance UIDs of a series, sorted. Raises ArchiveError if there are none."""

        def page(offset: int) -> list[Any]:
            return list(self._client.search_for_instances(series.study, series.uid, limit=_PAGE, offset=offset))

        found = sorted(self._all_pages("the search for images", page, "00080018"))
        if not found:
            raise ArchiveError(f"{self._place} lists no image of this series; check whether it was removed")
        return found

    def fetch(self, series: Series, instances: Sequence[str], folder: Path) -> None:
        """Write the images of a series into `folder`, one file each; what was in it is removed.

        Raises ArchiveError if an image of `instances` does not arrive.
        """
        self._tried("the transfer of the series", lambda: self._fetch(series, instances, folder))

    def store(self, path: Path) -> None:
        """Store a DICOM file. Raises ArchiveError unless the archive confirms that it has it, now or from before.

        Some archives refuse what they have: after an answer that was lost, and in the second of two equal runs.
        """
        from pydicom import dcmread

        data = dcmread(path)
        series, instance = Series(data.StudyInstanceUID, data.SeriesInstanceUID, "SEG"), data.SOPInstanceUID
        try:
            answer = self._tried("storing the segmentation", lambda: self._client.store_instances([data], series.study))
            if failed := list(answer.get("FailedSOPSequence") or ()):
                code = int(failed[0].get("FailureReason") or 0)
                raise ArchiveError(f"{self._place} refuses to store the segmentation (reason {code:04X}H); see its log")
        except ArchiveError:
            if self._is_down or not self._lists(series, instance):
                raise
            return
        stored = {str(one.ReferencedSOPInstanceUID) for one in answer.get("ReferencedSOPSequence") or ()}
        if instance not in stored and instance not in self.instances(series):
            raise ArchiveError(f"{self._place} does not have the segmentation after storing it; see its log")

    def _lists(self, series: Series, instance: str) -> bool:
        """Whether the archive lists an image; False if it does not answer."""
        try:
            return instance in self.instances(series)
        except ArchiveError:
            return False

    def _fetch(self, series: Series, instances: Sequence[str], folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        numbers: dict[str, int] = {}  # by UID: an image that is sent twice is one file
        any_encoding = (("application/dicom", "*"),)
        for data in self._client.iter_series(series.study, series.uid, media_types=any_encoding):
            if str(data.SeriesInstanceUID) != series.uid:
                raise ArchiveError(f"{self._place} sent an image of another series; see its log")
            path = folder / f"{numbers.setdefault(str(data.SOPInstanceUID), len(numbers)):06d}.dcm"
            data.save_as(path, enforce_file_format=True)
        if missing := set(instances) - numbers.keys():
            raise _Incomplete(f"{len(missing)} of {len(instances)} images did not arrive")

    def _all_pages(self, what: str, page: Callable[[int], list[Any]], tag: str) -> dict[str, Any]:
        """The entries of all pages by the UID in the attribute `tag`; a page without new entries is the last."""
        found: dict[str, Any] = {}
        while True:
            before = len(found)
            for entry in self._tried(what, lambda: page(before)):  # noqa: B023 - called at once
                found.setdefault(_uid(entry, tag), entry)
            if len(found) == before:
                return found

    def _tried(self, what: str, action: Callable[[], _Result]) -> _Result:
        waits = () if self._is_down else self._waits
        for number in range(len(waits) + 1):
            try:
                with silenced(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    result = action()
            except HandfulError:
                raise
            except Exception as error:  # the client raises errors of any class for wrong answers
                if problem := _on_this_computer(error):
                    raise InputError(
                        f"{what} failed on this computer: {problem}; correct the path, or free space"
                    ) from None
                cause, may_pass = _cause(error)
                if may_pass and number < len(waits):
                    time.sleep(waits[number])
                    continue
                self._is_down = cause == _UNREACHABLE
                attempts = f" in {number + 1} attempts" if number else ""
                raise ArchiveError(f"{what} at {self._place} failed{attempts}: {cause}") from None
            self._is_down = False
            return result
        raise AssertionError  # not reached


class _Incomplete(Exception):
    """Fewer images arrived than the archive lists."""


_UNREACHABLE = "no connection, or it broke off; check the address and the network"


def _on_this_computer(error: Exception) -> str:
    """What is wrong with a file here, such as a full disk or a missing file of certificates; "" for other errors."""
    from requests import RequestException

    if not isinstance(error, OSError) or isinstance(error, RequestException | ConnectionError | TimeoutError):
        return ""
    return error.strerror or str(error)


def _cause(error: Exception) -> tuple[str, bool]:
    """What went wrong and what to do, without the text of the error, which may quote the query; and may it pass?"""
    from requests import exceptions

    if isinstance(error, _Incomplete):
        return f"{error}; see the log of the archive, or run the command again", True
    if isinstance(error, exceptions.HTTPError) and error.response is not None:
        code = error.response.status_code
        return _state(code), code in _PASSING
    if isinstance(error, exceptions.SSLError):
        return "its certificate is not trusted; name that of your hospital in REQUESTS_CA_BUNDLE", False
    if isinstance(error, exceptions.InvalidJSONError):
        return "the answer is not DICOM JSON; check the address, which often ends in /dicom-web", False
    if isinstance(error, exceptions.RequestException | ConnectionError | TimeoutError):
        return _UNREACHABLE, True
    return f"the answer is not what DICOMweb defines ({type(error).__name__}); check the address and the log", True


def _state(code: int) -> str:
    if code in (401, 403):
        return f"access refused (HTTP {code}); put a valid token into {TOKEN}"
    if code == 404:
        return "not found (HTTP 404); check the address, and whether the series was removed"
    if code in _PASSING:
        return f"the server fails or is busy (HTTP {code}); see its log, and run the command again later"
    return f"refused (HTTP {code}); see its log"


def _client(url: str, token: str | None) -> Any:
    from dicomweb_client import DICOMwebClient
    from requests import Session

    session = Session()
    if token:
        session.auth = _Authorization(token)
    session.hooks["response"].append(_limited)
    client = DICOMwebClient(url, session=session, timeout=_TIMEOUT)
    client.set_http_retry_params(retry=False)
    return client


def _limited(response: Any, *_: Any, stream: bool = False, **__: Any) -> None:
    """Make an answer raise ArchiveError once it is too large; it may have no end, or be small only while compressed."""
    most, read = MAX_BYTES if stream else _MAX_LIST, response.iter_content

    def pieces(*args: Any, **options: Any) -> Iterator[bytes]:
        size = 0
        for piece in read(*args, **options):
            size += len(piece)
            if size > most:
                raise ArchiveError(
                    f"{urlsplit(response.url).netloc} sent more than the allowed {most:,} bytes; narrow the query, or "
                    "take a smaller series"
                )
            yield piece

    response.iter_content = pieces


class _Authorization:
    """Adds the token to a request; it is in no header of the session, so a redirect elsewhere does not have it."""

    def __init__(self, token: str) -> None:
        self._token = token if " " in token else f"Bearer {token}"

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = self._token
        return request


def token_from_environment() -> str | None:
    """The token in the environment variable TOKEN; None if there is none. Raises SettingsError for odd characters."""
    token = os.environ.get(TOKEN, "").strip()
    if not token.isprintable() or not token.isascii():
        raise SettingsError(f"{TOKEN} holds characters that no token has; set it again")
    return token or None


def _values(entry: Mapping[str, Any], tag: str) -> list[str]:
    attribute = entry.get(tag)
    values = attribute.get("Value") if isinstance(attribute, Mapping) else None
    return [str(value) for value in values] if isinstance(values, list) else []


def _value(entry: Mapping[str, Any], tag: str) -> str:
    return next(iter(_values(entry, tag)), "")


def _may_match(entry: Mapping[str, Any], keyword: str, wanted: str) -> bool:
    """False if an entry states another value than the one wanted. Patterns, lists, dates and text are not compared."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    tag = tag_for_keyword(keyword)
    if tag is None or not {keyword, dictionary_VR(tag)} & {*_COMPARED} or set(wanted) & set("*?,\\"):
        return True
    values = {value.strip().casefold() for value in _values(entry, f"{tag:08X}")}
    return not values or wanted.strip().casefold() in values


def _uid(entry: Any, tag: str) -> str:
    uid = _value(entry, tag) if isinstance(entry, Mapping) else ""
    if not _UID.fullmatch(uid):
        raise ArchiveError("the archive lists an entry without a valid UID; check the address, and see its log")
    return uid
