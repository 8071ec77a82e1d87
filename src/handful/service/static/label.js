// The view in which somebody labels one scan, slice by slice.
import { call, get, post, inOrder } from './api.js';
import { $, h, say, guarded, rgb } from './dom.js';
import { SliceView, disc, flood, packed, polygon } from './slice_view.js';
import { t, T } from './texts.js';

const TOOLS = ['click', 'box', 'scribble', 'brush', 'eraser', 'fill', 'polygon', 'lasso'];
const KEYS = { c: 'click', x: 'box', s: 'scribble', b: 'brush', e: 'eraser', f: 'fill', p: 'polygon', l: 'lasso' };
const POINTS = ['click', 'fill', 'polygon'];
// Steps that do not concern the displayed slice alone.
const WHOLE = ['undo', 'redo', 'propagate'];
// Keys that would end a stroke, or act on its slice, while it is drawn.
const NOT_IN_STROKE = /^(page|(arrow.*|home|end|enter|delete|backspace|n|a|r)$)/;
// Milliseconds after which a slice that is not loaded yet is blank, and no longer the one before.
const BLANK = 200;
const PRESETS = { soft: [-160, 240], lung: [-1350, 150], bone: [-500, 1300], brain: [0, 80] };

export class Label {
  constructor(app) {
    this.app = app;
    this.root = $('#label');
    this.tool = 'box';
    this.size = 6;
    this.current = 0;
    this.number = 0;
    this.shown = null; // the slice whose pixels and labels are displayed; null for none
    this.cache = new Map();
    this.asked = 0;
    this.pending = new Map(); // number of steps that are not answered yet, by case and slice
    this.answers = 0;
    this.failures = new Map(); // number of steps that failed, by case; those queued behind one are dropped
    this.touches = new Map(); // places of the fingers on the slice
    this.build();
    document.addEventListener('keydown', (event) => this.key(event));
    document.addEventListener('keyup', (event) => {
      if (event.key.toLowerCase() === 'w') this.windowing = null;
    });
    window.addEventListener(
      'pagehide',
      () => this.case && call(`cases/${this.case.id}/leave`, { method: 'POST', keepalive: true }).catch(() => {}),
    );
    window.addEventListener('beforeunload', (event) => this.pending.size && event.preventDefault());
    document.addEventListener('visibilitychange', () => document.hidden || this.root.hidden || this.back());
    setInterval(() => {
      if (this.case && !this.root.hidden && !document.hidden) post(`cases/${this.case.id}/stay`).catch(() => {});
    }, 25000);
  }
  build() {
    const button = (id, text, title, action) => h('button', { id, title, onclick: guarded(action) }, text);
    this.canvas = h('canvas', { tabindex: 0, 'aria-label': t('aria_slice') });
    this.position = h('span', { class: 'position' });
    this.reason = h('p', { class: 'reason', hidden: true });
    this.failure = h('p', { class: 'reason', role: 'status', hidden: true });
    this.slider = h('input', {
      type: 'range',
      min: 0,
      value: 0,
      'aria-label': t('aria_number'),
      oninput: (event) => this.scroll(+event.target.value),
    });
    this.tools = h(
      'div',
      { class: 'tools', role: 'radiogroup', 'aria-label': t('aria_tool') },
      TOOLS.map((tool) =>
        h(
          'button',
          { 'data-tool': tool, role: 'radio', title: t(`hint_${tool}`), onclick: () => this.choose(tool) },
          t(`tool_${tool}`),
        ),
      ),
    );
    this.labels = h('div', { class: 'labels', role: 'radiogroup', 'aria-label': t('nameLabels') });
    this.preset = h(
      'select',
      { 'aria-label': t('window'), onchange: (event) => this.usePreset(event.target.value) },
      ['model', 'full', ...Object.keys(PRESETS), 'own'].map((name) =>
        h('option', { value: name }, t(`preset_${name}`)),
      ),
    );
    this.sizeInput = h('input', {
      type: 'range',
      min: 1,
      max: 60,
      value: this.size,
      'aria-label': t('size'),
      oninput: (event) => {
        this.size = +event.target.value;
        this.view.paint();
      },
    });
    this.opacity = h('input', {
      type: 'range',
      min: 0,
      max: 100,
      value: 45,
      'aria-label': t('opacity'),
      oninput: (event) => {
        this.view.opacity = event.target.value / 100;
        this.view.paint();
      },
    });
    this.finishButton = button('finish', t('finish'), t('finishHint'), () => this.finish());
    this.hint = h('p', { class: 'hint' });
    this.empty = h(
      'div',
      { class: 'empty', role: 'status' },
      t('chooseCase'),
      h(
        'div',
        { class: 'row' },
        h('button', { onclick: () => this.app.show('cases') }, t('toCases')),
        h('button', { class: 'main', onclick: guarded(() => this.next()) }, t('nextSuggestion')),
      ),
    );
    this.threeD = h(
      'details',
      { ontoggle: guarded(() => this.context()) },
      h('summary', {}, t('context')),
      h(
        'div',
        {},
        h('canvas', { class: 'context', width: 300, height: 300, 'aria-label': t('context') }),
        (this.thinned = h('p', { class: 'hint' })),
        button('again', t('contextAgain'), '', () => this.context()),
      ),
    );
    this.body = h(
      'div',
      { class: 'bench', hidden: true },
      h(
        'div',
        { class: 'stage' },
        this.reason,
        this.failure,
        this.canvas,
        h(
          'div',
          { class: 'under' },
          this.position,
          this.slider,
          this.finishButton,
          button('next', t('nextSuggestion'), '', () => this.next()),
        ),
      ),
      h(
        'aside',
        {},
        h('h2', { id: 'caseName' }),
        this.labels,
        this.tools,
        this.hint,
        h('label', {}, t('size'), this.sizeInput),
        h('label', {}, t('opacity'), this.opacity),
        h('label', {}, t('window'), this.preset),
        h(
          'div',
          { class: 'row' },
          button('undo', t('undo'), 'Ctrl Z', () => this.act({ kind: 'undo' })),
          button('redo', t('redo'), 'Ctrl Y', () => this.act({ kind: 'redo' })),
          button('clear', t('clear'), '', () => this.act({ kind: 'clear' })),
          button('propagate', t('propagate'), t('propagateHint'), () => this.propagate()),
        ),
        this.threeD,
      ),
    );
    this.root.append(this.empty, this.body);
    this.view = new SliceView(this.canvas);
    this.view.sketch = (c, pixel) => this.sketch(c, pixel);
    this.canvas.addEventListener('pointerdown', (event) => this.down(event));
    this.canvas.addEventListener('pointermove', (event) => this.move(event));
    this.canvas.addEventListener('pointerup', (event) => this.up(event));
    this.canvas.addEventListener('pointercancel', (event) => this.lift(event));
    this.canvas.addEventListener('pointerleave', () => {
      this.pointer = null;
      this.view.paint();
    });
    this.canvas.addEventListener('dblclick', () => this.close());
    this.canvas.addEventListener('contextmenu', (event) => event.preventDefault());
    this.canvas.addEventListener(
      'wheel',
      (event) => {
        event.preventDefault();
        event.ctrlKey
          ? this.view.zoomAt(event, event.deltaY < 0 ? 1.15 : 1 / 1.15)
          : this.scroll(this.number + Math.sign(event.deltaY));
      },
      { passive: false },
    );
    // After a click with the mouse, Enter and Space are for the slice again.
    document.addEventListener('click', (event) => {
      if (event.detail && event.target.closest('button, summary')) this.canvas.focus({ preventScroll: true });
    });
    this.choose(this.tool);
  }
  // `number` counts slices as displayed, `index` along an axis of the array, as suggestions do.
  async open(id, { number, index, axis, reason } = {}) {
    const leave = (other) => call(`cases/${other}/leave`, { method: 'POST' }).catch(() => {});
    if (this.case && this.case.id !== id) leave(this.case.id);
    this.case = null;
    this.opening = id;
    this.announce(t('opening', this.app.state.cases.find((one) => one.id === id)?.name ?? ''), true);
    let details;
    try {
      details = await get(`cases/${id}`);
    } catch (error) {
      if (this.opening === id) this.announce(error.message);
      throw error;
    }
    if (this.opening !== id) return void leave(id);
    this.case = details;
    this.cache.clear();
    this.points = this.drag = this.shown = null;
    this.view.open(this.case);
    this.empty.hidden = true;
    this.body.hidden = false;
    this.threeD.open = false;
    $('#caseName').textContent = this.case.name;
    this.slider.max = this.case.slices - 1;
    this.slider.hidden = this.case.slices === 1;
    this.usePreset(this.preset.value === 'own' ? 'model' : this.preset.value);
    this.showLabels();
    if (axis !== undefined && axis !== details.axis) index = reason = undefined; // it is of slices in another plane
    if (index !== undefined) number = details.flipped ? details.slices - 1 - index : index;
    this.suggested = reason ? { number, reason } : null;
    if (details.proposed) say(t('proposed'), true);
    await this.go(number ?? this.start());
  }
  // A line in place of the slice, with a bar while something is under way.
  announce(text, busy = false) {
    this.body.hidden = true;
    this.empty.hidden = false;
    this.empty.replaceChildren(text, busy ? h('progress') : '');
  }
  // The first slice that somebody would look at: one in work, else the middle.
  start() {
    const open = this.case.prompted.filter((number) => !this.case.accepted.includes(number));
    return open[0] ?? Math.floor(this.case.slices / 2);
  }
  showLabels() {
    const labels = this.app.state.labels,
      focused = this.labels.contains(document.activeElement);
    this.current = Math.min(this.current, Math.max(0, labels.length - 1));
    this.view.colourBy(labels.map((label) => label.colour));
    this.labels.replaceChildren(
      ...labels.map((label, i) =>
        h(
          'button',
          {
            role: 'radio',
            'aria-checked': String(i === this.current),
            onclick: () => {
              this.current = i;
              this.showLabels();
            },
          },
          h('i', { style: `background: ${label.colour}` }),
          label.name,
          h('kbd', {}, i < 9 ? i + 1 : ''),
        ),
      ),
    );
    if (focused) this.labels.children[this.current]?.focus();
  }
  choose(tool) {
    this.tool = tool;
    this.points = null;
    for (const button of this.tools.children) button.setAttribute('aria-checked', button.dataset.tool === tool);
    this.hint.textContent = t(`hint_${tool}`);
    this.view?.paint();
  }
  usePreset(name) {
    this.preset.value = name;
    if (this.case) {
      this.view.window =
        name === 'model'
          ? [...this.case.window]
          : name === 'full'
            ? [...this.case.range]
            : name === 'own'
              ? this.view.window
              : [...PRESETS[name]];
      this.view.render();
    }
  }
  // As somebody scrolls, which would end a stroke that is being drawn.
  scroll(number) {
    if (this.drag?.points) this.slider.value = this.number;
    else this.go(number);
  }
  async go(number) {
    if (!this.case) return;
    number = Math.max(0, Math.min(this.case.slices - 1, number));
    const { id } = this.case;
    if (number !== this.number && this.drag?.points) this.drag = null; // it was drawn on the slice before
    this.number = number;
    this.slider.value = number;
    this.points = null;
    this.failure.hidden = true;
    this.status();
    const asked = ++this.asked,
      isLatest = () => asked === this.asked && id === this.case?.id,
      blank = setTimeout(() => isLatest() && this.blank(), BLANK);
    try {
      let pixels, classes, answers;
      do {
        answers = this.answers; // the segmentation may be older than the answer to a step that came meanwhile
        [pixels, classes] = await Promise.all([this.pixels(number), this.classes(number)]);
        if (!isLatest()) return;
      } while (answers !== this.answers);
      this.view.drawn = null;
      this.view.show(pixels, classes);
      this.shown = number;
      if (this.drag?.area) this.preview(this.drag);
      for (const ahead of [1, -1, 2])
        if (number + ahead >= 0 && number + ahead < this.case.slices) this.pixels(number + ahead).catch(() => {});
    } catch (error) {
      if (!isLatest()) return;
      this.blank();
      this.failure.replaceChildren(
        t('notLoaded', number + 1, error.message),
        ' ',
        h('button', { onclick: () => this.go(this.number) }, t('tryAgain')),
      );
      this.failure.hidden = false;
    } finally {
      clearTimeout(blank);
    }
  }
  // Displays no slice, so that none is taken for another.
  blank() {
    this.shown = null;
    if (this.drag?.points) this.drag = null;
    this.view.show(null, null);
  }
  // Somebody else may have worked on the case while it was not displayed.
  async back() {
    this.shown = null;
    await this.go(this.number);
  }
  pixels(number) {
    if (!this.cache.has(number)) {
      if (this.cache.size > 60) this.cache.delete(this.cache.keys().next().value);
      const { id, channels } = this.case;
      const loaded = call(`cases/${id}/slices/${number}`)
        .then((answer) => answer.arrayBuffer())
        .then((content) => (channels === 3 ? new Uint8Array(content) : new Uint16Array(content)));
      loaded.catch(() => this.cache.get(number) === loaded && this.cache.delete(number));
      this.cache.set(number, loaded);
    }
    return this.cache.get(number);
  }
  async classes(number) {
    const { id } = this.case,
      { answers } = this,
      answer = await call(`cases/${id}/slices/${number}/classes`);
    return (await this.take(id, answer, answers === this.answers)).classes;
  }
  // What the service answers about a case, which may no longer be the one that is open. Of an answer that is older than
  // one to a step, the lists of slices are out of date.
  async take(id, answer, isNew = true) {
    const { accepted, prompted, changed } = JSON.parse(answer.headers.get('x-meta'));
    if (isNew && this.case?.id === id) {
      Object.assign(this.case, { accepted, prompted });
      this.status();
    }
    return { changed, classes: new Uint8Array(await answer.arrayBuffer()) };
  }
  status() {
    const finished = this.case.accepted.includes(this.number),
      position = t('slice', this.number + 1, this.case.slices);
    this.slider.setAttribute('aria-valuetext', position);
    this.reason.hidden = this.suggested?.number !== this.number;
    this.reason.textContent = t('because', this.suggested?.reason);
    this.position.textContent = [
      this.case.slices > 1 ? position : '',
      finished ? t('finishedMark') : '',
    ]
      .filter(Boolean)
      .join(' · ');
    this.position.title = t('finishedSlices', this.case.accepted.length, this.case.slices);
    this.finishButton.textContent = finished ? t('reopen') : t('finish');
    this.body.classList.toggle('finished', finished);
  }
  // `label` is the place in the list of labels; that of a stroke is the one that it was begun with.
  act(step, label = this.current) {
    if (!this.case) return;
    if (!WHOLE.includes(step.kind) && this.shown !== this.number) return void say(t('notDisplayed'), true);
    const number = this.number,
      id = this.case.id,
      action = { slice: number, ...step },
      failures = this.failures.get(id);
    if (!['accept', 'reopen', ...WHOLE].includes(step.kind)) {
      if (this.isFinished()) return;
      action.label = this.app.state.labels[label]?.value;
    }
    this.count(id, number, 1);
    return inOrder(async () => {
      if (failures !== this.failures.get(id)) return this.count(id, number, -1); // it relied on a step that failed
      let changed, classes;
      try {
        const answer = await call(`cases/${id}/actions`, { method: 'POST', json: action });
        ({ changed, classes } = await this.take(id, answer));
        this.answers++;
      } catch (error) {
        this.failed(id, error);
        return this.count(id, number, -1);
      }
      this.count(id, number, -1);
      this.answered(id, number, classes);
      if (id !== this.case?.id || !['undo', 'redo'].includes(step.kind) || !changed.length || this.drag?.points) return;
      const now = changed.includes(this.number) ? this.number : changed[0];
      if (now !== number || number !== this.number) await this.go(now);
    });
  }
  // Whether the slice is finished, which the page says then; a step that is not answered yet may change that.
  isFinished() {
    const { id, accepted } = this.case,
      finished = accepted.includes(this.number) && !this.isPending(id, this.number);
    if (finished) say(t('isFinished', this.number + 1, t('reopen')), true);
    return finished;
  }
  // After a step that failed: those queued behind it are dropped, and the slice is displayed as the service has it.
  failed(id, error) {
    const steps = [...this.pending].reduce((sum, [key, more]) => sum + (key.startsWith(`${id} `) ? more : 0), 0);
    this.failures.set(id, (this.failures.get(id) ?? 0) + 1);
    say(`${error.message.replace(/[.]?$/, '.')} ${steps > 1 ? t('notKeptSteps', steps) : t('notKept')}`, true);
    if (id === this.case?.id) this.back();
  }
  count(id, number, more) {
    const key = `${id} ${number}`,
      left = (this.pending.get(key) ?? 0) + more;
    left ? this.pending.set(key, left) : this.pending.delete(key);
    this.root.classList.toggle('busy', this.pending.size > 0);
  }
  isPending(id, number) {
    return this.pending.has(`${id} ${number}`);
  }
  // Displays the answer to a step. What was drawn stays until the last step of the slice is answered.
  answered(id, number, classes) {
    if (id !== this.case?.id || number !== this.shown) return;
    this.view.classes = classes;
    if (!this.isPending(id, number)) {
      this.view.drawn = null;
      if (this.drag?.area) this.preview(this.drag);
    }
    this.view.renderClasses();
  }
  async finish() {
    const finished = this.case.accepted.includes(this.number);
    await this.act({ kind: finished ? 'reopen' : 'accept' });
    this.app.refresh();
  }
  async propagate() {
    say(t('working'));
    await this.act({ kind: 'propagate' });
    await this.go(this.number);
  }
  async next() {
    const { suggestions, cases } = this.app.state,
      here = cases.findIndex((one) => one.id === this.case?.id),
      free = new Set(cases.filter((one) => !one.in_use && !one.unreadable).map((one) => one.id));
    this.used ??= new Set();
    for (const one of suggestions) {
      const key = `${one.job} ${one.id} ${one.axis} ${one.index}`;
      if (this.used.has(key) || !free.has(one.id)) continue;
      this.used.add(key);
      if (!(await this.tried(one.id, one))) continue;
      if (this.case?.id !== one.id || !this.case.accepted.includes(this.number)) return;
    }
    if (!suggestions.length) await this.suggest();
    for (const one of [...cases.slice(here + 1), ...cases.slice(0, Math.max(here, 0))])
      if (['unlabelled', 'in work'].includes(one.status) && free.has(one.id) && (await this.tried(one.id))) return;
    say(t('noSuggestion'));
  }
  // Lets slices be compared, unless another job runs.
  async suggest() {
    if (this.app.state.job?.state !== 'running') await this.app.start('suggest');
    const { job } = this.app.state;
    if (job?.state === 'running') say(job.kind === 'suggest' ? t('suggesting') : t('busy', t(`job_${job.kind}`)));
  }
  // Opens a case; false if its scan cannot be read, which the list of cases states from then on.
  async tried(id, place) {
    await this.app.show('label', id, place);
    if (this.case?.id === id) return true;
    await this.app.refresh();
    return !this.app.state.cases.find((one) => one.id === id)?.unreadable;
  }
  // Three planes and 3D of the scan with its labels as they are now.
  async context() {
    if (!this.threeD.open) return;
    const { id } = this.case;
    const { Niivue } = await import('./vendor/niivue.js');
    if (!this.viewer) {
      this.viewer = new Niivue({
        backColor: [0, 0, 0, 1],
        show3Dcrosshair: true,
        dragAndDropEnabled: false,
        isNearestInterpolation: true,
        isRadiologicalConvention: true,
        crosshairWidth: 0.4,
        crosshairWidthUnit: 'percent',
      });
      this.viewer.opts.multiplanarShowRender = 1;
      this.viewer.opts.multiplanarLayout = 2; // a grid of two by two
      await this.viewer.attachToCanvas(this.threeD.querySelector('canvas'));
    }
    const load = async (name) => {
      const answer = await call(`cases/${id}/${name}`),
        { step } = JSON.parse(answer.headers.get('x-meta'));
      return { step, url: URL.createObjectURL(await answer.blob()) };
    };
    const loaded = [await load('image.nii.gz'), await load('segmentation.nii.gz')],
      urls = loaded.map((one) => one.url),
      step = loaded[0].step.map((every, axis) => Math.max(every, loaded[1].step[axis]));
    if (this.case?.id !== id) return;
    this.thinned.textContent = step.some((every) => every > 1) ? t('thinned', step.join(' × ')) : '';
    await this.viewer.loadVolumes([
      { url: urls[0], name: 'scan.nii.gz' },
      { url: urls[1], name: 'labels.nii.gz', opacity: 0.5 },
    ]);
    urls.forEach((url) => URL.revokeObjectURL(url));
    const labels = this.app.state.labels,
      part = (channel) => [0, ...labels.map((one) => rgb(one.colour)[channel])];
    this.viewer.volumes[1].setColormapLabel({
      R: part(0),
      G: part(1),
      B: part(2),
      A: [0, ...labels.map(() => 255)],
      I: [0, ...labels.map((one) => one.value)],
      labels: ['', ...labels.map((one) => one.name)],
    });
    this.viewer.updateGLVolume();
    this.viewer.setSliceType(this.viewer.sliceTypeMultiplanar);
  }
  // Pointer.
  down(event) {
    if (!this.case || !this.view.pixels) return;
    if (event.pointerType === 'touch') {
      if (event.isPrimary) this.touches.clear();
      this.touches.set(event.pointerId, [event.clientX, event.clientY]);
      if (this.touches.size > 1) return this.cancelStroke();
    }
    const pointer = event.pointerId;
    if (this.drag && ![undefined, pointer].includes(this.drag.pointer)) return; // a hand that lies on the screen
    if (event.pointerId !== undefined) this.canvas.setPointerCapture(event.pointerId);
    this.canvas.focus({ preventScroll: true });
    const at = this.view.at(event);
    if (event.button === 1) {
      this.drag = { pointer, window: [...this.view.window], from: [event.clientX, event.clientY] };
      event.preventDefault();
      return;
    }
    if (event.shiftKey) {
      this.drag = { pointer, pan: [...this.view.pan], from: [event.clientX, event.clientY] };
      return;
    }
    const positive = !(event.altKey || event.button === 2);
    if (!this.view.inside(at) || this.shown !== this.number || this.isFinished()) return;
    const drag = { pointer, points: [at], positive, tool: this.tool, label: this.current, before: this.view.drawn };
    if (POINTS.includes(this.tool) && event.pointerType !== 'touch') return this.tap(drag);
    this.drag = drag;
    if (this.tool === 'brush' || this.tool === 'eraser') {
      this.drag.positive = this.tool === 'brush';
      this.drag.area = new Uint8Array(this.view.width * this.view.height);
      this.stroke(at, at);
    }
  }
  // A tool that takes one point; that of a finger counts when it is lifted, since a second one may follow.
  tap({ tool, points: [at], positive, label }) {
    if (tool === 'click') this.act({ kind: 'click', points: [at], positive }, label);
    else if (tool === 'fill') this.fill(at, positive, label);
    else {
      (this.points ??= []).push(at);
      this.view.paint();
    }
  }
  // Two fingers move the picture, and zoom it by their distance.
  pinch(event) {
    const spread = () => {
      const [[ax, ay], [bx, by]] = this.touches.values();
      return { clientX: (ax + bx) / 2, clientY: (ay + by) / 2, length: Math.max(1, Math.hypot(ax - bx, ay - by)) };
    };
    const before = spread();
    this.touches.set(event.pointerId, [event.clientX, event.clientY]);
    const after = spread(),
      [x, y] = this.view.pan;
    this.view.pan = [x + after.clientX - before.clientX, y + after.clientY - before.clientY];
    this.view.zoomAt(after, after.length / before.length);
  }
  // A finger is lifted, or the browser has taken the pointer for something else.
  lift({ pointerId, type }) {
    this.touches.delete(pointerId);
    if (type === 'pointercancel' && this.drag?.pointer === pointerId) this.cancelStroke();
  }
  cancelStroke() {
    const before = this.drag?.points ? this.drag.before : this.view.drawn;
    this.drag = null;
    this.view.drawn = this.isPending(this.case.id, this.number) ? before : null;
    this.view.renderClasses();
  }
  move(event) {
    if (!this.case) return;
    if (this.touches.size > 1) return void (this.touches.has(event.pointerId) && this.pinch(event));
    if (this.drag && this.drag.pointer !== event.pointerId) return;
    const at = this.view.at(event);
    this.pointer = at;
    this.cursor = false;
    if (this.windowing) {
      this.shiftWindow(this.windowing, event);
      return;
    }
    if (this.drag?.window) {
      this.shiftWindow(this.drag, event);
      return;
    }
    if (this.drag?.pan) {
      this.view.pan = [
        this.drag.pan[0] + event.clientX - this.drag.from[0],
        this.drag.pan[1] + event.clientY - this.drag.from[1],
      ];
      this.view.paint();
      return;
    }
    this.last = [event.clientX, event.clientY];
    if (this.drag?.area) {
      const points = this.drag.points;
      this.stroke(points[points.length - 1], at);
      points.push(at);
      return;
    }
    if (this.drag) this.drag.points.push(this.view.clamp(at));
    this.view.paint();
  }
  up(event) {
    this.lift(event);
    const drag = this.drag;
    if (drag?.pointer !== event.pointerId) return;
    this.drag = null;
    if (!drag?.points) return;
    if (POINTS.includes(drag.tool)) return this.tap(drag);
    const [a, b] = [drag.points[0], drag.points[drag.points.length - 1]];
    if (drag.tool === 'box') {
      const box = [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
      if (box[2] - box[0] > 1 && box[3] - box[1] > 1) this.act({ kind: 'box', box }, drag.label);
    } else if (drag.tool === 'scribble')
      this.act({ kind: 'scribble', points: drag.points, positive: drag.positive }, drag.label);
    else if (drag.area) this.change(drag);
    else if (drag.tool === 'lasso' && drag.points.length > 3)
      this.add({ ...drag, area: polygon(this.view.width, this.view.height, drag.points) });
    this.view.paint();
  }
  shiftWindow({ window: [low, high], from }, event) {
    const [min, max] = this.case.range,
      unit = (max - min) / 600,
      width = Math.max(unit, high - low + (event.clientX - from[0]) * unit),
      centre = (low + high) / 2 + (event.clientY - from[1]) * unit;
    this.view.window = [centre - width / 2, centre + width / 2];
    this.preset.value = 'own';
    this.view.render();
  }
  stroke([ax, ay], [bx, by]) {
    const steps = Math.max(1, Math.ceil(Math.hypot(bx - ax, by - ay) / Math.max(1, this.size / 3)));
    for (let i = 0; i <= steps; i++)
      disc(
        this.drag.area,
        this.view.width,
        this.view.height,
        [ax + ((bx - ax) * i) / steps, ay + ((by - ay) * i) / steps],
        this.size / 2,
        1,
      );
    this.preview(this.drag);
  }
  // What is displayed: the segmentation, with areas that the service has not answered yet.
  displayed() {
    return this.view.drawn ?? this.view.classes;
  }
  // Displays an area as added to a label, or removed from it.
  preview({ area, positive, label }) {
    const own = label + 1;
    const changed = (value) => (positive ? own : value === own ? 0 : value);
    this.view.drawn = this.displayed().map((value, i) => (area[i] ? changed(value) : value));
    this.view.renderClasses();
  }
  add(change) {
    this.preview(change);
    this.change(change);
  }
  // Only the area is sent, so that steps which are not answered yet stay as they are.
  change({ area, positive, label }) {
    this.act({ kind: 'area', mask: packed(area), positive }, label);
  }
  fill(at, positive, label) {
    const mask = this.displayed().map((value) => (value === label + 1 ? 1 : 0)),
      inside = mask[Math.round(at[1]) * this.view.width + Math.round(at[0])];
    if (positive !== !inside) return;
    this.add({ area: flood(mask, this.view.width, this.view.height, at), positive, label });
  }
  close() {
    if (this.tool === 'polygon' && this.points?.length > 2) {
      const area = polygon(this.view.width, this.view.height, this.points);
      this.points = null;
      this.add({ area, positive: true, label: this.current });
    }
  }
  sketch(c, pixel) {
    c.lineWidth = 1.5 * pixel;
    c.strokeStyle = this.app.state.labels[this.drag?.label ?? this.current]?.colour ?? '#fff';
    const path = (points) => {
      c.beginPath();
      points.forEach(([x, y], i) => c[i ? 'lineTo' : 'moveTo'](x + 0.5, y + 0.5));
      c.stroke();
    };
    if (this.drag?.points && this.drag.tool === 'box') {
      const [a, b] = [this.drag.points[0], this.drag.points.at(-1)];
      c.strokeRect(a[0] + 0.5, a[1] + 0.5, b[0] - a[0], b[1] - a[1]);
    } else if (this.drag?.points && !this.drag.area) path(this.drag.points);
    if (this.points) path(this.pointer ? [...this.points, this.pointer] : this.points);
    if (this.cursor && this.pointer) {
      const [x, y] = this.pointer,
        r = 8 * pixel;
      c.beginPath();
      c.moveTo(x + 0.5 - r, y + 0.5);
      c.lineTo(x + 0.5 + r, y + 0.5);
      c.moveTo(x + 0.5, y + 0.5 - r);
      c.lineTo(x + 0.5, y + 0.5 + r);
      c.stroke();
    }
    if (this.pointer && ['brush', 'eraser'].includes(this.tool)) {
      c.beginPath();
      c.ellipse(this.pointer[0] + 0.5, this.pointer[1] + 0.5, this.size / 2, this.size / 2, 0, 0, 7);
      c.stroke();
    }
  }
  // The pointer by keys: Shift and arrows move it, a full stop presses and releases.
  moveCursor(direction) {
    const [x, y] = this.pointer ?? [this.view.width / 2, this.view.height / 2],
      step = 1 / 64,
      dx = { left: -1, right: 1 }[direction] ?? 0,
      dy = { up: -1, down: 1 }[direction] ?? 0;
    const to = this.view.clamp([
      x + dx * Math.max(1, this.view.width * step),
      y + dy * Math.max(1, this.view.height * step),
    ]);
    this.cursor = true;
    this.move(this.view.event(to));
    this.cursor = true;
    this.view.paint();
  }
  press(outside) {
    if (this.drag) return void this.up({});
    const at = this.pointer ?? [this.view.width / 2, this.view.height / 2];
    this.down({ ...this.view.event(at), altKey: outside });
  }
  // Whether a key is for the control that has the focus.
  isOfControl(target, key) {
    if (key === 'enter' || key === ' ') return target.closest('button, summary') !== null;
    return target.type === 'range' && target !== this.slider && /^(arrow|page|home$|end$)/.test(key);
  }
  key(event) {
    if (
      this.root.hidden ||
      (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== 'range') ||
      $('dialog[open]')
    )
      return;
    const key = event.key.toLowerCase(),
      control = event.ctrlKey || event.metaKey;
    const done = () => event.preventDefault();
    if (!this.case) {
      if (key === 'n' && !control) guarded(() => this.next())();
      return;
    }
    if (this.isOfControl(event.target, key)) return;
    const isCursor = event.shiftKey && key.startsWith('arrow');
    if (this.drag?.points && (control ? /^[zy]$/ : NOT_IN_STROKE).test(key) && !isCursor) return done();
    if (control) {
      if (key === 'z') {
        done();
        this.act({ kind: event.shiftKey ? 'redo' : 'undo' });
      } else if (key === 'y') {
        done();
        this.act({ kind: 'redo' });
      }
      return;
    }
    if (KEYS[key]) {
      done();
      this.choose(KEYS[key]);
    } else if (/^[1-9]$/.test(key) && this.app.state.labels[key - 1]) {
      this.current = key - 1;
      this.showLabels();
    } else if (isCursor) {
      done();
      this.moveCursor(key.slice(5));
    } else if (key === 'arrowup' || key === 'arrowleft') {
      done();
      this.go(this.number - 1);
    } else if (key === 'arrowdown' || key === 'arrowright') {
      done();
      this.go(this.number + 1);
    } else if (key === 'pageup') {
      done();
      this.go(this.number - 10);
    } else if (key === 'pagedown') {
      done();
      this.go(this.number + 10);
    } else if (key === '[' || key === ']') {
      this.size = Math.max(1, Math.min(60, this.size + (key === ']' ? 1 : -1)));
      this.sizeInput.value = this.size;
      this.view.paint();
    } else if (key === '+' || key === '-') {
      const box = this.canvas.getBoundingClientRect();
      this.view.zoomAt(
        { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 },
        key === '+' ? 1.2 : 1 / 1.2,
      );
    } else if (event.code === 'Period') {
      done();
      this.press(event.altKey);
    } else if (key === 'home') {
      done();
      this.go(0);
    } else if (key === 'end') {
      done();
      this.go(this.case.slices - 1);
    } else if (key === 'q') {
      const names = [...this.preset.options].map((option) => option.value).filter((name) => name !== 'own');
      this.usePreset(names[(names.indexOf(this.preset.value) + 1) % names.length]);
    } else if (key === '{' || key === '}') {
      this.opacity.value = +this.opacity.value + (key === '}' ? 10 : -10);
      this.view.opacity = this.opacity.value / 100;
      this.view.paint();
    } else if (key === 'a') guarded(() => this.propagate())();
    else if (key === 'delete' || key === 'backspace') {
      done();
      this.act({ kind: 'clear' });
    } else if (key === 'd') this.threeD.open = !this.threeD.open;
    else if (key === ' ') {
      done();
      this.view.visible = !this.view.visible;
      this.view.paint();
    } else if (key === 'enter') {
      done();
      this.points ? this.close() : guarded(() => this.finish())();
    } else if (key === 'escape') {
      this.points = null;
      this.cancelStroke();
    } else if (key === 'r') this.go(this.number);
    else if (key === 'n') guarded(() => this.next())();
    else if (key === 'w' && !this.windowing && this.last)
      this.windowing = { window: [...this.view.window], from: this.last };
  }
}
