// One slice on a canvas: grey values through a window, the segmentation in colours, and what is being drawn.
import { rgb } from './dom.js';

export class SliceView {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext('2d');
    this.opacity = 0.45;
    this.visible = true;
    this.zoom = 1;
    this.pan = [0, 0];
    this.window = [0, 1];
    this.buffer = document.createElement('canvas');
    this.overlay = document.createElement('canvas');
    this.case = null;
    this.pixels = null;
    this.classes = null;
    this.drawn = null;
    this.only = null;
    new ResizeObserver(() => this.paint()).observe(canvas);
  }
  open(details) {
    this.case = details;
    [this.height, this.width] = details.size;
    for (const one of [this.buffer, this.overlay]) {
      one.width = this.width;
      one.height = this.height;
    }
    this.pixels = this.classes = this.drawn = null;
    this.zoom = 1;
    this.pan = [0, 0];
  }
  // Colours of the labels, such as #56B4E9.
  colourBy(colours) {
    this.colours = colours.map((colour) => {
      const [red, green, blue] = rgb(colour);
      return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    });
    if (this.case) this.renderClasses();
  }
  show(pixels, classes) {
    this.pixels = pixels;
    this.classes = classes;
    this.render();
  }
  // Grey values → picture. The window is in the scan's own grey values.
  render() {
    if (!this.pixels) return this.paint();
    const {
        range: [low, high],
        channels,
      } = this.case,
      image = new ImageData(this.width, this.height),
      out = new Uint32Array(image.data.buffer);
    if (channels === 3) {
      for (let i = 0, j = 0; i < out.length; i++, j += 3)
        out[i] = 0xff000000 | (this.pixels[j + 2] << 16) | (this.pixels[j + 1] << 8) | this.pixels[j];
    } else {
      const table = new Uint32Array(65536),
        [from, to] = this.window,
        step = (high - low) / 65535,
        span = Math.max(to - from, 1e-9);
      for (let i = 0; i < 65536; i++) {
        const grey = Math.max(0, Math.min(255, Math.round(((low + i * step - from) / span) * 255)));
        table[i] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
      }
      for (let i = 0; i < out.length; i++) out[i] = table[this.pixels[i]];
    }
    this.buffer.getContext('2d').putImageData(image, 0, 0);
    this.renderClasses();
  }
  renderClasses() {
    const image = new ImageData(this.width, this.height),
      out = new Uint32Array(image.data.buffer);
    const classes = this.drawn ?? this.classes;
    if (classes)
      for (let i = 0; i < out.length; i++) {
        const own = classes[i];
        if (own) out[i] = this.colours[own - 1];
      }
    this.overlay.getContext('2d').putImageData(image, 0, 0);
    this.paint();
  }
  // Scale of a slice pixel on the canvas, so that the picture has the shape that the patient has.
  frame() {
    const ratio = devicePixelRatio || 1,
      w = this.canvas.clientWidth,
      hgt = this.canvas.clientHeight;
    if (this.canvas.width !== Math.round(w * ratio) || this.canvas.height !== Math.round(hgt * ratio)) {
      this.canvas.width = Math.round(w * ratio);
      this.canvas.height = Math.round(hgt * ratio);
    }
    const [, row, column] = this.case.spacing,
      scale = Math.min(w / (this.width * column), hgt / (this.height * row)) * this.zoom;
    const sx = scale * column,
      sy = scale * row;
    return {
      ratio,
      sx,
      sy,
      left: (w - this.width * sx) / 2 + this.pan[0],
      top: (hgt - this.height * sy) / 2 + this.pan[1],
    };
  }
  paint() {
    if (!this.case || !this.canvas.clientWidth) return;
    const { ratio, sx, sy, left, top } = this.frame(),
      c = this.context;
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.fillStyle = '#000';
    c.fillRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.pixels) return;
    c.setTransform(sx * ratio, 0, 0, sy * ratio, left * ratio, top * ratio);
    c.imageSmoothingEnabled = sx < 3;
    c.globalAlpha = 1;
    c.drawImage(this.buffer, 0, 0);
    if (this.visible) {
      c.imageSmoothingEnabled = false;
      c.globalAlpha = this.opacity;
      c.drawImage(this.overlay, 0, 0);
      c.globalAlpha = 1;
    }
    this.sketch?.(c, 1 / Math.max(sx, 1e-6));
    this.orient(c, ratio);
  }
  // Which side of the patient is where; rows run to the back or the feet, columns to the left or the back.
  orient(c, ratio) {
    const sides = this.case.unit === 'mm' && { axial: 'RLAP', coronal: 'RLSI', sagittal: 'APSI' }[this.case.plane];
    if (!sides) return;
    const { width, height } = this.canvas,
      edge = 12 * ratio;
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.font = `600 ${13 * ratio}px system-ui, sans-serif`;
    c.textAlign = 'center';
    c.textBaseline = 'middle';
    c.lineWidth = 3 * ratio;
    c.strokeStyle = '#000';
    c.fillStyle = '#fff';
    const places = [
      [edge, height / 2],
      [width - edge, height / 2],
      [width / 2, edge],
      [width / 2, height - edge],
    ];
    places.forEach(([x, y], i) => {
      c.strokeText(sides[i], x, y);
      c.fillText(sides[i], x, y);
    });
  }
  // Pixel of a pointer: (0, 0) is the centre of the first one, as the service counts.
  at(event) {
    const { sx, sy, left, top } = this.frame(),
      box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left - left) / sx - 0.5, (event.clientY - box.top - top) / sy - 0.5];
  }
  // The reverse: where a pointer would be over a pixel.
  event([x, y]) {
    const { sx, sy, left, top } = this.frame(),
      box = this.canvas.getBoundingClientRect();
    return { clientX: box.left + left + (x + 0.5) * sx, clientY: box.top + top + (y + 0.5) * sy, button: 0 };
  }
  inside([x, y]) {
    return x >= -0.5 && y >= -0.5 && x <= this.width - 0.5 && y <= this.height - 0.5;
  }
  clamp([x, y]) {
    return [Math.max(-0.5, Math.min(this.width - 0.5, x)), Math.max(-0.5, Math.min(this.height - 0.5, y))];
  }
  zoomAt(event, factor) {
    const before = this.at(event);
    this.zoom = Math.max(0.5, Math.min(40, this.zoom * factor));
    const after = this.at(event),
      { sx, sy } = this.frame();
    this.pan = [this.pan[0] + (after[0] - before[0]) * sx, this.pan[1] + (after[1] - before[1]) * sy];
    this.paint();
  }
}

// Masks, one byte per pixel.
export function disc(mask, width, height, [x, y], radius, value) {
  const r2 = radius * radius;
  for (let j = Math.max(0, Math.floor(y - radius)); j <= Math.min(height - 1, Math.ceil(y + radius)); j++)
    for (let i = Math.max(0, Math.floor(x - radius)); i <= Math.min(width - 1, Math.ceil(x + radius)); i++)
      if ((i - x) ** 2 + (j - y) ** 2 <= r2) mask[j * width + i] = value;
}
export function polygon(width, height, points) {
  const canvas = document.createElement('canvas');
  canvas.width = width;
  canvas.height = height;
  const mask = new Uint8Array(width * height);
  for (let j = 0; j < height; j++) {
    // even-odd along each row, through the centres of pixels
    const crossings = [];
    for (let a = 0, b = points.length - 1; a < points.length; b = a++) {
      const [xa, ya] = points[a],
        [xb, yb] = points[b];
      if (ya > j !== yb > j) crossings.push(xa + ((j - ya) / (yb - ya)) * (xb - xa));
    }
    crossings.sort((one, other) => one - other);
    for (let k = 0; k + 1 < crossings.length; k += 2)
      for (let i = Math.max(0, Math.ceil(crossings[k])); i <= Math.min(width - 1, Math.floor(crossings[k + 1])); i++)
        mask[j * width + i] = 1;
  }
  return mask;
}
export function flood(mask, width, height, [x, y]) {
  const start = Math.round(y) * width + Math.round(x),
    value = mask[start],
    found = new Uint8Array(mask.length),
    todo = [start];
  found[start] = 1;
  while (todo.length) {
    const at = todo.pop(),
      i = at % width,
      j = (at - i) / width;
    for (const [ni, nj] of [
      [i + 1, j],
      [i - 1, j],
      [i, j + 1],
      [i, j - 1],
    ]) {
      const next = nj * width + ni;
      if (ni >= 0 && nj >= 0 && ni < width && nj < height && !found[next] && mask[next] === value) {
        found[next] = 1;
        todo.push(next);
      }
    }
  }
  return found;
}
export function packed(mask) {
  const bytes = new Uint8Array(Math.ceil(mask.length / 8));
  for (let i = 0; i < mask.length; i++) if (mask[i]) bytes[i >> 3] |= 128 >> (i & 7);
  let text = '';
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}
