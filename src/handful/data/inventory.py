"""The files of a cohort's folders: scans, side-car files, and those that are left out, each with its reason and remedy.

The names and suffixes in IGNORED_NAMES and IGNORED_SUFFIXES are passed over in silence, as are hidden files: nobody
means them as scans. Every other file is read or listed.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from handful.data.cases import LeftOut
from handful.data.dicom.sources import DICOM_SUFFIXES, has_dicom_start, is_dicom
from handful.data.formats import SUFFIXES, is_label_map, is_scan, stem
from handful.errors import InputError
from handful.jobs.files import open_file

IGNORED_NAMES = (
    *("authors", "changelog", "changes", "citation", "copying", "licence", "license", "notice", "readme"),
    *("desktop.ini", "thumbs.db", "dicomdir", "__macosx", "@eadir"),
)
"""Names, in any case and with any suffix, of files that nobody means as scans."""
IGNORED_SUFFIXES = (
    *(".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".yaml", ".yml", ".toml", ".xml", ".html", ".pdf", ".bib"),
    *(".doc", ".docx", ".xls", ".xlsx", ".ods", ".odt", ".ppt", ".pptx", ".rtf", ".log", ".ini", ".cfg"),
    *(".py", ".sh", ".bat", ".ipynb", ".r", ".bval", ".bvec", ".md5", ".sha1", ".sha256"),
)
"""Suffixes of files that nobody means as scans."""
SIDECAR = ".slices.json"
LONGEST = 220
"""Bytes of the longest name of a case, so that names of outputs, which are longer, stay within the 255 of a disk."""

_UNREAD = {
    (".mgz", ".mgh"): "a FreeSurfer volume; convert it, for example with mri_convert, to .nii.gz",
    (".hdr", ".img", ".hdr.gz", ".img.gz"): "NIfTI or Analyze in two files; save the scan as one .nii.gz",
    (".nii.bz2", ".nii.xz", ".nii.zst"): "NIfTI that is not compressed with gzip; unpack it to .nii",
    (".mnc", ".mnc.gz"): "a MINC volume; convert it, for example with mnc2nii, to .nii.gz",
    (".par", ".rec"): "a Philips scan; convert it, for example with dcm2niix, to .nii.gz",
    (".head", ".brik", ".brik.gz"): "an AFNI scan; convert it, for example with 3dAFNItoNIFTI, to .nii.gz",
    (".npy", ".npz", ".mat", ".h5", ".hdf5"): "an array without a grid; save it as .nii.gz",
    (".gif", ".webp", ".jp2", ".heic", ".svs", ".ndpi", ".czi"): "a picture that is not read; save it as .png or .tif",
    (".tar", ".tar.gz", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"): "an archive; unpack it",
    (".raw", ".zraw", ".bin"): "voxels without a header that names them; add the header, or save one .mha or .nrrd",
    (".mrb", ".gipl", ".vtk", ".vti"): "a file that is not read; save the scan as .nii.gz",
}
_POINTERS = (b"/annex/objects/", b"version https://git-lfs.github.com/")
"""First bytes of the small files that git-annex and Git LFS leave in place of a file that was not fetched."""
_POINTER_BYTES = 200
_FETCH = "fetch it (datalad get, git annex get, git lfs pull or dvc pull), or remove it"
_OFF_SIDECAR = re.compile(r"slices?[^a-z]*json", re.IGNORECASE)
_OFF_DATASET = re.compile(r"data[-_ ]?sets?([-_ ]?\(?\d+\)?)?\.json(\.\w+)?", re.IGNORECASE)
_HEADER_BYTES = 2**16


@dataclass
class Listing:
    """The content of one folder."""

    folder: Path
    root: Path
    """Folder of the cohort; names of files that are left out are relative to it."""
    scans: dict[str, Path] = field(default_factory=dict)
    """Files of a known format, by the name of their case (without `by_case`, by that of the file)."""
    dicom: list[Path] = field(default_factory=list)
    """DICOM files, archives, and folders of DICOM files."""
    sidecars: list[Path] = field(default_factory=list)
    """Files that name labelled slices, rightly named or not."""
    left_out: list[LeftOut] = field(default_factory=list)
    by_case: bool = True

    def leave_out(self, path: Path, reason: str) -> None:
        """Add a file to those that are left out."""
        self.left_out.append(left_out(path, reason, self.root))


def case_name(path: str | Path) -> str:
    """The name of the case that a file belongs to: its stem, with letters composed (Unicode NFC) as on most systems.

    A folder has no suffix.
    """
    path = Path(path)
    return unicodedata.normalize("NFC", path.name if path.is_dir() else stem(path))


def problem_of_name(name: str) -> str | None:
    """Why the outputs of a case cannot have its name; None if they can."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "the name is not UTF-8; rename it"
    if "\\" in name:
        return "the name has a backslash, which other systems take for a folder; rename it"
    if "/" in name or "\0" in name or name.startswith("."):
        return "the name is that of a folder or of a hidden file; rename it"
    if size > LONGEST:
        return f"a name of {size} bytes, which is too long for the names of outputs; shorten it to {LONGEST}"
    return None


def left_out(path: Path, reason: str, root: Path) -> LeftOut:
    """A file that is left out, by its name relative to the cohort's folder."""
    name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    return LeftOut(os.fsencode(name).decode("utf-8", "backslashreplace"), reason)


def list_folder(folder: Path, root: Path, by_case: bool = True) -> Listing:
    """The files directly in a folder. Raises InputError if two files belong to one case.

    Without `by_case`, scans go by the names of their files: where a list says which files are a case, an image and its
    label map may differ in their suffix alone.
    """
    listing = Listing(folder, root, by_case=by_case)
    if not folder.is_dir():
        return listing
    unknown: list[Path] = []
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("."):
            _classify(path, listing, unknown)
    voxels = set(_voxel_files(listing)) if unknown else set()
    for path in unknown:
        if path.name not in voxels:
            listing.leave_out(path, _why_unread(path))
    return listing


def list_label_maps(folder: Path, root: Path) -> Listing:
    """The label maps in a folder. Those whose side-car file has a wrong name are left out.

    The slices that such a file does not list would otherwise count as labelled background.
    """
    listing = list_folder(folder, root)
    for path in listing.dicom:
        if not is_label_map(path):
            listing.leave_out(path, "labels are read from a DICOM-SEG file, not from a folder or archive; put it here")
        elif (other := listing.scans.setdefault(case_name(path), path)) != path:
            raise InputError(f"two files for one case: {other} and {path}; remove one of them")
    listing.dicom.clear()
    right = {f"{stem(path)}{SIDECAR}" for path in listing.scans.values()}
    wrong = [path for path in listing.sidecars if path.name not in right]
    listing.sidecars = [path for path in listing.sidecars if path not in wrong]
    leave_out_sidecars(wrong, listing)
    return listing


def leave_out_sidecars(sidecars: list[Path], labels: Listing) -> None:
    """List side-car files that no label map is read with, and leave out the label maps that they seem to mean."""
    for path in sidecars:
        meant = _meant(path.name, labels.scans)
        if meant is None:
            reason = f"a list of slices without a label map of its name; name it CASE{SIDECAR} next to its label map"
        else:
            label = labels.scans.pop(meant)
            right = label.with_name(f"{stem(label)}{SIDECAR}")
            name = left_out(right, "", labels.root).file
            reason = (
                f"a list of slices with a wrong name or place; move it to {name}. Until then, {label.name} is left out"
            )
        labels.left_out.append(left_out(path, reason, labels.root))


def list_surroundings(root: Path, layout: tuple[str, ...]) -> Listing:
    """Scans in a cohort that are outside the folders of its layout, and folders whose name is a little off."""
    listing = Listing(root, root)
    where = " or ".join(f"{name}/" for name in layout)
    for path in sorted(root.iterdir()):
        if path.name.startswith(".") or path.name in (*layout, "dataset.json", "imagesTs", "labelsTs"):
            continue
        if path.is_dir():
            if _OFF_FOLDER.fullmatch(path.name) and holds_scans(path):
                listing.leave_out(
                    path, f"a folder with a similar name; scans and labels are read from {where}; rename it"
                )
        elif _is_off_dataset(path, root):
            listing.leave_out(path, "not named dataset.json; rename it, or remove it")
        elif _OFF_SIDECAR.search(path.name):
            listing.sidecars.append(path)
        elif not _is_ignored(path) and (_known_suffix(path) or _unread_suffix(path) or has_dicom_start(path)):
            listing.leave_out(path, f"outside the folders of the cohort; move it into {where}")
    return listing


def holds_scans(folder: Path) -> bool:
    """Whether a folder, or a folder in it, has files that look like scans, and is no output of handful."""
    if (folder / ".handful").exists() or (folder / "segmenter.json").exists():
        return False
    for path in _shown(folder):
        inside = _shown(path) if path.is_dir() else [path]
        if any(_known_suffix(file) or _unread_suffix(file) or has_dicom_start(file) for file in inside):
            return True
    return False


def is_dicom_case(path: Path) -> bool:
    """Whether a path of a cohort is a scan in DICOM."""
    if path.name.startswith(".") or is_scan(path):
        return False
    return is_dicom(path) if path.is_dir() else path.name.lower().endswith(DICOM_SUFFIXES) or has_dicom_start(path)


_OFF_FOLDER = re.compile(
    r"(image|img|scan|label|mask|annotation|segmentation|seg|gt|ground[-_ ]?truth|imagestr|labelstr)s?", re.IGNORECASE
)


def _classify(path: Path, listing: Listing, unknown: list[Path]) -> None:
    lower = path.name.lower()
    if _OFF_SIDECAR.search(path.name) and not path.is_dir():
        listing.sidecars.append(path)
    elif _is_off_dataset(path, listing.root):
        listing.leave_out(path, "not named dataset.json; rename it, or remove it")
    elif _is_ignored(path) or (lower.endswith(".dvc") and path.with_suffix("").exists()):
        return
    elif problem := _unusable(path):
        listing.leave_out(path, problem)
    elif is_scan(path):
        name = case_name(path) if listing.by_case else path.name
        if (other := listing.scans.setdefault(name, path)) != path:
            raise InputError(f"two files for one case: {other} and {path}; remove one of them")
    elif is_dicom_case(path):
        listing.dicom.append(path)
    elif path.is_dir():
        if _known_suffix(path):
            listing.leave_out(path, "a folder with the name of a file; move the file in it here, and remove the folder")
        elif holds_scans(path):
            listing.leave_out(path, "a folder with scans in it; move its files here, or the folder elsewhere")
    else:
        unknown.append(path)


def _is_off_dataset(path: Path, root: Path) -> bool:
    """Whether a file seems to be the dataset.json that is missing."""
    return bool(_OFF_DATASET.fullmatch(path.name)) and path.parent == root and not (root / "dataset.json").exists()


def _unusable(path: Path) -> str | None:
    """Why a file cannot be a scan, whatever its format is."""
    if path.is_symlink() and not path.exists():
        return f"a link that leads nowhere ({os.readlink(path)}); {_FETCH}"
    if path.name.lower().endswith(".dvc"):
        return f"a pointer of DVC to a file that is not here; {_FETCH}"
    if not (path.is_file() or path.is_dir()):
        return "neither a file nor a folder; remove it"
    if problem := problem_of_name(case_name(path)):
        return problem
    if path.is_file() and path.stat().st_size < _POINTER_BYTES and _start(path).startswith(_POINTERS):
        return f"a pointer to a file that is not here; {_FETCH}"
    return None


def _is_ignored(path: Path) -> bool:
    lower = path.name.lower()
    plain = lower.partition(".")[0] in IGNORED_NAMES or lower in IGNORED_NAMES
    return (plain and not _known_suffix(path)) or lower.endswith(IGNORED_SUFFIXES)


def _shown(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if not (path.name.startswith(".") or _is_ignored(path)))


def _known_suffix(path: Path) -> bool:
    return path.name.lower().endswith((*SUFFIXES, *DICOM_SUFFIXES))


def _unread_suffix(path: Path) -> bool:
    return any(path.name.lower().endswith(suffixes) for suffixes in _UNREAD)


def _why_unread(path: Path) -> str:
    for suffixes, reason in _UNREAD.items():
        if path.name.lower().endswith(suffixes):
            return reason
    return "an unknown file format; save volumes as .nii.gz and pictures as .png, or move it out of the folder"


def _voxel_files(listing: Listing) -> Iterator[str]:
    """Names of the files of voxels that the headers (.mhd, .nhdr) in a folder name."""
    for path in listing.scans.values():
        if path.suffix.lower() in (".mhd", ".nhdr"):
            text = _start(path, _HEADER_BYTES).decode("utf-8", "replace")
            yield from re.findall(
                r"^(?:ElementDataFile *=|data ?file:) *(.+?) *\r?$", text, re.MULTILINE | re.IGNORECASE
            )


def _start(path: Path, size: int = 64) -> bytes:
    try:
        with open_file(path) as file:
            return file.read(size)
    except (InputError, OSError):
        return b""


def _meant(sidecar: str, scans: dict[str, Path]) -> str | None:
    """The case whose name a side-car file starts with, the longest one; None if there is none.

    The name must end there: a list of case10 is not that of case1.
    """
    lower = unicodedata.normalize("NFC", sidecar).lower()
    rest = {name: lower.removeprefix(name.lower()) for name in scans if lower.startswith(name.lower())}
    own = [name for name, more in rest.items() if more.startswith("slice") or not more[:1].isalnum()]
    return max(own, key=len, default=None)
