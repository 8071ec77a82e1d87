"""A scan with its label map as one HTML page, for notebooks and for sending to others; needs no network.

NiiVue, which shows it, and the voxels are inside the page, so it needs nothing but a browser with WebGL 2.
"""

from __future__ import annotations

import base64
import gzip
import html
import io
import json
import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from handful.data.label_colours import label_colours
from handful.data.volume import Geometry, LabelMap, Volume
from handful.errors import InputError
from handful.jobs.atomic import write_atomically

HEIGHT = 560
"""Pixels of the viewer in a notebook."""
NIIVUE = "service/static/vendor/niivue.js"
SENT_MB = 256.0
"""Most megabytes of voxels, before compression, that a viewer is sent; a CT of 512 × 512 × 480 voxels just fits."""

Step = tuple[int, int, int]
"""Every how many voxels are shown along i, j and k."""


@dataclass(frozen=True, repr=False)
class Viewer:
    """A page that shows a scan in three planes and in 3D. Notebooks show it as the value of a code block."""

    html: str
    """The whole page."""
    step: Step
    """Every how many voxels are shown along i, j and k; (1, 1, 1) is all of them."""

    def save(self, path: str | Path) -> None:
        """Write the page into a file, completely or not at all."""
        write_atomically(Path(path), self.html.encode())

    def _repr_html_(self) -> str:
        page = html.escape(self.html)
        return f'<iframe srcdoc="{page}" title="scan" style="width: 100%; height: {HEIGHT}px; border: 0"></iframe>'

    def __repr__(self) -> str:
        return f"<Viewer of {len(self.html) / 1e6:.1f} MB; call save(path) to write it>"


def show(volume: Volume, label_map: LabelMap | None = None, max_mb: float = 20.0) -> Viewer:
    """Show a scan, with a label map in the colours of handful's pictures; the last line of a block in a notebook.

    Where the voxels would take more than `max_mb` megabytes in the page, every second voxel is left out along the axis
    with the smallest spacing, as often as needed; the page says so. Voxels that are shown stay where they are in the
    patient. Colour pictures are shown in grey, and of several sequences the first. The page holds the voxels, so a
    notebook that is saved with it is data of the patient. Raises GeometryMismatch if the label map lies on another
    grid, InputError if `max_mb` is not positive.
    """
    if not max_mb > 0:
        raise InputError(f"max_mb must be positive, got {max_mb:g}")
    if label_map is not None:
        volume.geometry.require_same(label_map.geometry, "the scan and the label map")
    shown: Step = (1, 1, 1)
    while True:
        packed = [base64.b64encode(_nifti(one, shown, 6)).decode() for one in (volume, label_map) if one is not None]
        if sum(map(len, packed)) <= max_mb * 1e6 or max(volume.geometry.shape) <= max(shown):
            return Viewer(_page(packed, label_map, shown), shown)
        shown = _coarser(shown, volume.geometry)


def nifti_bytes(volume: Volume | LabelMap, max_mb: float = SENT_MB) -> tuple[bytes, Step]:
    """A scan or a label map as .nii.gz for a viewer, in world coordinates of the patient (RAS, mm), and its step.

    Where its voxels would take more than `max_mb` megabytes before compression, voxels are left out as in `show`.
    """
    step: Step = (1, 1, 1)
    while _megabytes(volume, step) > max_mb and max(volume.geometry.shape) > max(step):
        step = _coarser(step, volume.geometry)
    return _nifti(volume, step, 1), step


def _coarser(step: Step, geometry: Geometry) -> Step:
    """Half as many voxels along the axis on which those that are shown are nearest to each other."""
    distances = np.where(np.array(geometry.shape) > step, geometry.spacing * step, np.inf)
    i, j, k = (one * 2 if axis == distances.argmin() else one for axis, one in enumerate(step))
    return i, j, k


def _megabytes(volume: Volume | LabelMap, step: Step) -> float:
    """Megabytes of the shown voxels before compression, at most."""
    is_colour = isinstance(volume, Volume) and len(volume.array) > 1 and not volume.sequences
    size = 4 if is_colour else min(4, volume.array.dtype.itemsize)
    return size * math.prod(-(-n // every) for n, every in zip(volume.geometry.shape, step, strict=True)) / 1e6


def _nifti(volume: Volume | LabelMap, step: Step, level: int) -> bytes:
    """The shown voxels as NIfTI; they are compressed as they are written, without an uncompressed file in memory."""
    image = nib.Nifti1Image(_voxels(volume, step), volume.geometry.affine @ np.diag([*step, 1]))
    content = io.BytesIO()
    with gzip.GzipFile(fileobj=content, mode="wb", compresslevel=level, mtime=0) as compressed:
        image.to_stream(compressed)
    return content.getvalue()


def _voxels(volume: Volume | LabelMap, step: Step) -> NDArray[np.generic]:
    """The shown voxels, of a type that NiiVue reads; colours become grey, of several sequences the first is taken."""
    i, j, k = step
    array: NDArray[np.generic] = volume.array[..., ::i, ::j, ::k]
    if isinstance(volume, LabelMap):
        classes = array.clip(min=0)  # unlabelled voxels have no colour
        return classes.astype(np.uint8 if classes.max() < 256 else np.int32)
    grey = len(array) == 1 or volume.sequences
    array = np.asarray(array[0]) if grey else array.mean(axis=0, dtype=np.float32)
    if array.dtype == np.bool_:
        return np.asarray(array, np.uint8)
    return np.asarray(array, np.float32) if array.dtype.itemsize == 8 or array.dtype == np.float16 else array


def _page(packed: list[str], label_map: LabelMap | None, step: Step) -> str:
    listed = [] if label_map is None else list(label_colours(label_map.labels))
    note = "" if step == (1, 1, 1) else f"To save space, one voxel in {' × '.join(map(str, step))} is shown."
    library = base64.b64encode(gzip.compress(files("handful").joinpath(NIIVUE).read_bytes(), 9)).decode()
    legend = "".join(f'<li><i style="background: {colour}"></i>{html.escape(name)}</li>' for _, name, colour in listed)
    content = {
        "volumes": packed,
        "labels": [{"value": value, "name": name, "colour": colour} for value, name, colour in listed],
        "library": library,
    }
    data = json.dumps(content).replace("<", "\\u003c")
    return PAGE.substitute(data=data, note=html.escape(note), legend=legend)


PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>handful: scan</title>
<style>
html, body { margin: 0; height: 100%; background: #101214; color: #e8eaed; font: 14px/1.4 system-ui, sans-serif; }
body { display: flex; flex-direction: column; }
main { flex: 1; min-height: 0; position: relative; } canvas { position: absolute; inset: 0; outline: none; }
footer { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; align-items: center; padding: .4rem .8rem; }
ul { display: flex; flex-wrap: wrap; gap: .3rem 1rem; margin: 0; padding: 0; list-style: none; }
i { display: inline-block; width: .8rem; height: .8rem; border-radius: 3px; margin-right: .4rem; vertical-align: -1px; }
label { display: flex; gap: .4rem; align-items: center; } output { color: #9aa4ae; margin-left: auto; }
p { margin: 0; color: #ffbe4d; }
</style>
</head>
<body>
<main><canvas aria-label="three planes and 3D of the scan" tabindex="0"></canvas></main>
<footer>
<ul>$legend</ul><label>Labels <input type="range" min="0" max="100" value="50"></label><p>$note</p><output></output>
</footer>
<script type="application/json" id="data">$data</script>
<script type="module">
const given = JSON.parse(document.getElementById('data').textContent);
const bytes = text => Uint8Array.from(atob(text), one => one.charCodeAt(0));
const url = (content, type) => URL.createObjectURL(new Blob([content], { type }));
try {
  const library = new Response(new Blob([bytes(given.library)]).stream().pipeThrough(new DecompressionStream('gzip')));
  const { Niivue } = await import(url(await library.arrayBuffer(), 'text/javascript'));
  const shown = document.querySelector('output'), slider = document.querySelector('input');
  const viewer = new Niivue({ backColor: [0.063, 0.071, 0.078, 1], dragAndDropEnabled: false, show3Dcrosshair: true,
    isNearestInterpolation: true, isRadiologicalConvention: true, crosshairWidth: 0.4, crosshairWidthUnit: 'percent',
    onLocationChange: place => { shown.textContent = place.string; } });
  await viewer.attachToCanvas(document.querySelector('canvas'));
  const names = ['scan.nii.gz', 'labels.nii.gz'];
  const volumes = given.volumes.map((one, i) => ({ url: url(bytes(one)), name: names[i], opacity: i ? 0.5 : 1 }));
  await viewer.loadVolumes(volumes);
  if (given.volumes.length > 1) {
    const part = start => [0, ...given.labels.map(one => parseInt(one.colour.slice(start, start + 2), 16))];
    viewer.volumes[1].setColormapLabel({ R: part(1), G: part(3), B: part(5), A: [0, ...given.labels.map(() => 255)],
      I: [0, ...given.labels.map(one => one.value)], labels: ['', ...given.labels.map(one => one.name)] });
    viewer.updateGLVolume();
    slider.addEventListener('input', () => viewer.setOpacity(1, slider.value / 100));
  } else { slider.parentElement.hidden = true; slider.parentElement.style.display = 'none'; }
  viewer.opts.multiplanarShowRender = 1;
  viewer.setSliceType(viewer.sliceTypeMultiplanar);
  window.viewer = viewer;
} catch (error) {
  document.querySelector('p').textContent = 'This browser cannot show the scan: ' + error.message;
}
</script>
</body>
</html>
""")
