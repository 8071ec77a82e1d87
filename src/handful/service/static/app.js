// The page: four views of one cohort, and the job that runs.
import { get, post, call, picture } from './api.js';
import { $, fill, h, placeMessage, say, guarded } from './dom.js';
import { Label } from './label.js';
import { breakable, t, T, duration } from './texts.js';

const RUNNING = 800,
  IDLE = 15000;

class App {
  constructor() {
    this.state = { cases: [], labels: [], suggestions: [], problems: [], curve: [], left_out: [], job: null, model: null };
    this.sort = 'name';
    this.filter = 'all';
    this.chosen = null; // id of the case that the keys of Review are for
    this.known = null; // the job as it was when its state was last announced
    this.label = new Label(this);
    new ResizeObserver(placeMessage).observe($('.under')); // also when it appears
    addEventListener('scroll', placeMessage, { passive: true });
    for (const button of document.querySelectorAll('nav button')) {
      button.textContent = t(`view_${button.dataset.view}`);
      button.addEventListener('click', () => this.show(button.dataset.view));
    }
    addEventListener('popstate', () => this.restore());
    document.addEventListener('keydown', (event) => this.key(event), true);
    $('#review').addEventListener('focusin', (event) => {
      const place = this.results().findIndex((one) => $(`#result-${one.id}`)?.contains(event.target));
      if (place < 0 || this.results()[place].id === this.chosen) return;
      this.chosen = this.results()[place].id;
      this.draw();
    });
    $('#keys').title = t('keysHint');
    $('#keys').addEventListener('click', () => this.help());
    const dragging = (event, here) => {
      event.preventDefault();
      document.body.classList.toggle('dragging', here);
    };
    document.addEventListener('dragover', (event) => dragging(event, true));
    document.addEventListener('dragleave', (event) => event.relatedTarget || dragging(event, false));
    document.addEventListener('drop', (event) => {
      dragging(event, false);
      const dropped = [...event.dataTransfer.items].filter((item) => item.kind === 'file'),
        isFolder = (item) => Boolean(item.webkitGetAsEntry()?.isDirectory);
      this.upload(
        dropped.filter((item) => !isFolder(item)).map((item) => item.getAsFile()),
        dropped.filter(isFolder).map((item) => item.webkitGetAsEntry().name),
      );
    });
    this.begin();
  }
  // Keys of all views; those of the slice are in label.js. G is the first of two keys.
  key(event) {
    if (
      (/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName) && event.target.type !== 'range') ||
      event.ctrlKey ||
      event.metaKey ||
      event.altKey ||
      $('dialog[open]')
    )
      return;
    const key = event.key.toLowerCase(),
      take = (work) => {
        event.preventDefault();
        event.stopPropagation();
        work();
      };
    const view = { c: 'cases', l: 'label', r: 'review', e: 'export' }[key],
      going = this.going;
    if (key === 'shift') return;
    this.going = key === 'g' && !going;
    if (this.going) return;
    if (going && view) return take(() => this.show(view));
    if (key === '?') return take(() => this.help());
    if (this.view === 'cases') {
      if (key === 'n') take(guarded(() => this.label.next()));
      if (key === 'm') take(() => $('#learn').click());
      if (key === 's') take(() => $('#segment').click());
    }
    if (this.view === 'review') {
      const place = this.results().findIndex((one) => one.id === this.chosen);
      if (key === 'j' || key === 'k') take(() => this.choose(place + (key === 'j' ? 1 : -1)));
      else if (['a', 'c', 'b'].includes(key))
        take(() => event.repeat || $(`.queue li.chosen [data-key=${key}]`)?.click());
    }
  }
  // Choose a case of Review by its place in the list.
  choose(number) {
    const found = this.results();
    if (!found.length) return;
    this.chosen = found[Math.max(0, Math.min(found.length - 1, number))].id;
    this.draw();
    const item = $('.queue li.chosen');
    item.focus({ preventScroll: true });
    item.scrollIntoView({ block: 'nearest' });
  }
  async begin() {
    await this.refresh();
    this.known = this.state.job;
    await this.restore();
    this.poll();
  }
  restore() {
    const [view, id, number] = location.hash.slice(1).split('/');
    return this.show(
      ['cases', 'label', 'review', 'export'].includes(view) ? view : 'cases',
      id || undefined,
      { number: number ? +number : undefined },
      true,
    );
  }
  show = guarded(async (view, id, place = {}, quietly = false) => {
    for (const section of document.querySelectorAll('main > section')) section.hidden = section.id !== view;
    for (const button of document.querySelectorAll('nav button'))
      button.setAttribute('aria-current', button.dataset.view === view ? 'page' : 'false');
    this.view = view;
    if (view === 'review' && !this.results().some((one) => one.id === this.chosen))
      this.chosen = this.results()[0]?.id;
    if (!quietly)
      history.pushState(null, '', `#${[view, id, place.number].filter((part) => part !== undefined).join('/')}`);
    if (view === 'label') await (id ? this.label.open(id, place) : this.label.back());
    this.draw();
  });
  refresh = guarded(async (anyway = true) => {
    const before = JSON.stringify(this.state);
    this.state = await get('state');
    if (!anyway && JSON.stringify(this.state) === before) return;
    $('#cohort').textContent = this.state.name;
    document.title = `${this.state.name} – handful`;
    this.draw();
  });
  async poll() {
    for (;;) {
      await new Promise((ready) => setTimeout(ready, this.known?.state === 'running' ? RUNNING : IDLE));
      if (document.hidden) continue;
      try {
        const { job } = await get('job'),
          before = this.known;
        this.state.job = this.known = job;
        this.drawJob();
        const changed = Boolean(job) && (before?.state !== job.state || before?.number !== job.number);
        if (changed && job.state !== 'running') say(this.outcome(job), job.state === 'failed');
        if (changed || job?.state !== 'running') await this.refresh(changed); // others work on the cohort, too
      } catch (error) {
        say(error.message, true);
      }
    }
  }
  outcome(job) {
    const kind = t(`job_${job.kind}`);
    return job.state === 'failed' ? t('failed', kind, job.error) : t(job.state, kind);
  }
  start = guarded(async (kind, more = {}) => {
    this.state.job = this.known = (await post('job', { kind, ...more })).job;
    this.drawJob();
    this.draw();
  });
  draw() {
    const focused = document.activeElement?.id;
    this.drawView();
    if (focused && document.activeElement?.id !== focused) document.getElementById(focused)?.focus();
  }
  drawView() {
    this.drawJob();
    if (this.view === 'cases') this.drawCases();
    if (this.view === 'review') this.drawReview();
    if (this.view === 'export') this.drawExport();
    if (this.view === 'label' && this.label.case) this.label.showLabels();
  }
  drawJob() {
    const job = this.state.job,
      box = $('#job');
    const state = (text) => h('span', { id: 'state', role: 'status' }, text); // what is announced: start and end
    if (job?.state !== 'running') return fill(box, state(job && job.state !== 'done' ? this.outcome(job) : ''));
    const share = job.total > 1 ? job.step / job.total : 0;
    const left = job.left_s != null && share ? t('left', duration(job.left_s)) : '',
      note = [left, job.note].filter(Boolean).join(' · ');
    fill(
      box,
      state(t(`job_${job.kind}`)),
      h('progress', { 'aria-label': t(`job_${job.kind}`), ...(share ? { value: share, max: 1 } : {}) }),
      h('span', { class: 'note', title: note }, note),
      h(
        'button',
        {
          onclick: guarded(async () => {
            const answer = await call('job', { method: 'DELETE' });
            this.state.job = this.known = (await answer.json()).job;
            await this.refresh();
          }),
        },
        t('cancel'),
      ),
    );
  }
  // Cases.
  drawCases() {
    const { cases, labels, model, job } = this.state,
      running = job?.state === 'running',
      shown = this.sorted(cases.filter((one) => this.filter === 'all' || one.status === this.filter));
    const choice = (id, name, value, options, onchange) =>
      h(
        'label',
        {},
        name,
        h(
          'select',
          { id, onchange: (event) => onchange(event.target.value) },
          options.map(([key, text]) => h('option', { value: key, selected: key === value }, text)),
        ),
      );
    const counts = Object.fromEntries(
      ['unlabelled', 'in work', 'labelled', 'to review', 'accepted'].map((status) => [
        status,
        cases.filter((one) => one.status === status).length,
      ]),
    );
    const auto = (this.method ?? 'auto') === 'auto';
    const minutes = h('input', {
      id: 'minutes',
      type: 'number',
      min: 1,
      max: 1440,
      value: this.minutes ?? 30,
      onchange: (event) => {
        this.minutes = +event.target.value;
      },
    });
    const method = choice(
      'method',
      t('method'),
      this.method ?? 'auto',
      [
        ['auto', t('methodAuto')],
        ...['fate', 'ensemble', 'self-training', 'unet', 'auto-sam-unet', 'few-shot-prompts'].map((name) => [
          name,
          name,
        ]),
      ],
      (value) => {
        this.method = value;
        this.estimate = null;
        this.draw();
      },
    );
    const add = () =>
      h(
        'label',
        { class: 'button' },
        t('addScans'),
        h('input', {
          id: 'files',
          type: 'file',
          multiple: true,
          onchange: (event) => {
            this.upload([...event.target.files]);
            event.target.value = ''; // so that the same file can be chosen again
          },
        }),
      );
    fill(
      $('#cases'),
      cases.length ? '' : h('div', { class: 'empty drop' }, t('noCases'), add()),
      h(
        'div',
        { class: 'steps' },
        h(
          'article',
          {},
          h('h2', {}, t('stepLabel')),
          h(
            'label',
            { class: 'names' },
            t('nameLabels'),
            h(
              'textarea',
              { id: 'names', rows: Math.max(2, labels.length + 1), placeholder: 'liver\nspleen', spellcheck: false },
              labels.map((one) => one.name).join('\n'),
            ),
          ),
          h('p', { class: 'hint' }, t('labelsHint'), ' ', t('finishHint')),
          h(
            'div',
            { class: 'row' },
            h(
              'button',
              {
                id: 'saveNames',
                onclick: guarded(async () => {
                  const box = $('#names'),
                    typed = box.value;
                  const names = typed
                    .split('\n')
                    .map((name) => name.trim())
                    .filter(Boolean);
                  await post('labels', { names }, 'PUT');
                  await this.refresh();
                  if (box.value === typed) box.value = box.defaultValue; // as they were saved
                }),
              },
              t('save'),
            ),
            h('button', { disabled: running || !cases.length, onclick: () => this.start('suggest') }, t('suggestNext')),
          ),
          this.problems('suggest'),
        ),
        h(
          'article',
          {},
          h('h2', {}, t('stepLearn')),
          method,
          auto && h('label', {}, t('minutes'), minutes),
          auto ? h('p', { class: 'hint' }, t('autoCost')) : this.cost(running || !counts.labelled),
          !counts.labelled && h('p', { class: 'hint' }, t('labelsNeeded')),
          h(
            'button',
            {
              id: 'learn',
              class: 'main',
              disabled: running || !counts.labelled,
              onclick: () =>
                this.start('learn', {
                  method: this.method ?? 'auto',
                  ...(auto ? { minutes: this.minutes ?? 30 } : {}),
                }),
            },
            t('learn'),
          ),
          this.problems('learn'),
          this.learned(model),
        ),
        h(
          'article',
          {},
          h('h2', {}, t('stepSegment')),
          h(
            'button',
            { id: 'segment', class: 'main', disabled: running || !model, onclick: () => this.start('segment') },
            t('segmentAll'),
          ),
          !model && h('p', { class: 'hint' }, t('nothingLearned')),
          counts['to review'] > 0 && h('button', { onclick: () => this.show('review') }, t('stepReview')),
          this.problems('segment'),
          this.curve(),
        ),
      ),
      h(
        'div',
        { class: 'bar', hidden: !cases.length },
        h('strong', {}, t('allCases', cases.length)),
        choice(
          'filter',
          t('show'),
          this.filter,
          [['all', t('all')], ...Object.entries(counts).map(([status, count]) => [status, `${t(status)} (${count})`])],
          (value) => {
            this.filter = value;
            this.draw();
          },
        ),
        choice(
          'sort',
          t('sortBy'),
          this.sort,
          [
            ['name', t('byName')],
            ['status', t('byStatus')],
            ['quality', t('byQuality')],
          ],
          (value) => {
            this.sort = value;
            this.draw();
          },
        ),
        cases.length ? add() : '',
      ),
      this.notRead(),
      h(
        'ul',
        { class: 'grid' },
        shown.map((one) => this.card(one)),
      ),
    );
  }
  // Files that belong to no case, and scans that could not be read.
  notRead() {
    const broken = this.state.cases.filter((one) => one.unreadable),
      lines = [
        ...this.state.left_out.map((one) => `${one.file}: ${one.reason}`),
        ...broken.map((one) => `${one.name}: ${one.unreadable}`),
      ];
    if (!lines.length) return '';
    return h(
      'details',
      { class: 'bad' },
      h('summary', {}, t('leftOut', lines.length)),
      h(
        'ul',
        {},
        lines.map((line) => h('li', {}, line)),
      ),
    );
  }
  sorted(cases) {
    const order = ['in work', 'unlabelled', 'to review', 'accepted', 'labelled'];
    const by = {
      name: (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }),
      status: (a, b) => order.indexOf(a.status) - order.indexOf(b.status) || by.name(a, b),
      quality: (a, b) => (a.quality ?? 2) - (b.quality ?? 2) || by.name(a, b),
    };
    return [...cases].sort(by[this.sort]);
  }
  card(one) {
    return h(
      'li',
      { id: `card-${one.id}` },
      h(
        'button',
        {
          class: 'card',
          'data-case': one.name,
          disabled: one.in_use,
          onclick: () => (this.state.labels.length ? this.show('label', one.id) : say(t('namesNeeded'), true)),
        },
        this.picture(`cases/${one.id}/thumbnail.png?${one.scan_state}`),
        h('span', { class: 'name' }, breakable(one.name)),
        h('span', { class: `status ${one.status.replace(' ', '-')}` }, one.in_use ? t('inUse') : t(one.status)),
        one.quality != null &&
          one.status !== 'labelled' &&
          h('span', { class: 'quality' }, t('quality', one.quality.toFixed(2))),
      ),
    );
  }
  picture(path) {
    const image = h('img', { loading: 'lazy', src: picture(path), alt: '' });
    image.addEventListener('error', () => image.replaceWith(h('span', { class: 'no-picture' }, t('noPicture'))));
    return image;
  }
  // What the chosen method will take, on demand: it is timed on this machine.
  cost(disabled) {
    const method = this.method;
    const estimated = guarded(async () => {
      this.estimate = t('estimating');
      this.draw();
      let found = null;
      try {
        found = (await post('cost', { method })).cost ?? t('costUnknown');
      } finally {
        if (this.method === method) this.estimate = found; // not of a method that was chosen before
        this.draw();
      }
    });
    return this.estimate
      ? h('p', { id: 'cost', tabindex: -1, class: 'hint', role: 'status' }, this.estimate)
      : h('button', { id: 'cost', disabled, onclick: estimated }, t('estimateCost'));
  }
  learned(model) {
    if (!model) return null;
    const listed = (dice) =>
      Object.entries(dice)
        .map(([name, value]) => `${name} ${value.toFixed(2)}`)
        .join(', ');
    return h(
      'div',
      { class: 'learned' },
      h('p', {}, t('learned', model.method, model.labelled)),
      Object.keys(model.dice_left_out).length ? h('p', {}, t('expected', listed(model.dice_left_out))) : null,
      Object.keys(model.dice_on_support).length ? h('p', {}, t('ownDice', listed(model.dice_on_support))) : null,
      model.not_learned.length ? h('p', { class: 'bad' }, t('notLearned', model.not_learned.join(', '))) : null,
      model.decisions.length
        ? h(
            'details',
            {},
            h('summary', {}, t('decisions')),
            h(
              'ul',
              {},
              model.decisions.map((line) => h('li', {}, line)),
            ),
          )
        : null,
    );
  }
  // What went wrong in the last job of a kind, until it is resolved or dismissed.
  problems(kind) {
    const found = this.state.problems.find((one) => one.kind === kind);
    if (!found) return null;
    const listed = (title, cases) =>
      cases.length
        ? [
            t(title),
            h(
              'ul',
              {},
              cases.map((one) => h('li', {}, `${one.case}: ${one.reason}`)),
            ),
          ]
        : [];
    return h(
      'div',
      { class: 'bad' },
      found.error && h('p', {}, t('failed', t(`job_${kind}`), found.error)),
      listed(`failures_${kind}`, found.failures),
      listed('warnings', found.warnings),
      h(
        'button',
        {
          'data-dismiss': kind,
          onclick: guarded(async () => {
            await post(`jobs/${found.job}/dismiss`, {});
            await this.refresh();
          }),
        },
        t('dismiss'),
      ),
    );
  }
  curve() {
    const points = this.state.curve.filter((point) => point.dice != null);
    if (!points.length) return null;
    const most = Math.max(...points.map((point) => point.slices)),
      x = (value) => 28 + (160 * value) / most,
      y = (value) => 84 - 76 * value;
    const svg = (tag, attributes, text) => {
      const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      if (text != null) element.textContent = text;
      return element;
    };
    const drawing = svg('svg', { viewBox: '0 0 200 104', class: 'curve', role: 'img', 'aria-label': t('curveHint') });
    for (const value of [0, 0.5, 1])
      drawing.append(
        svg('line', { x1: 28, x2: 194, y1: y(value), y2: y(value), class: 'axis' }),
        svg('text', { x: 22, y: y(value) + 3, 'text-anchor': 'end' }, value),
      );
    drawing.append(svg('polyline', { points: points.map((point) => `${x(point.slices)},${y(point.dice)}`).join(' ') }));
    for (const point of points)
      drawing.append(
        svg('circle', { cx: x(point.slices), cy: y(point.dice), r: 3 }),
        svg('text', { x: x(point.slices), y: 98, 'text-anchor': 'middle' }, point.slices),
      );
    const [before, now] = points.slice(-2),
      gain = points.length > 1 ? now.dice - before.dice : null;
    return h(
      'figure',
      {},
      h('figcaption', {}, t('curve')),
      drawing,
      gain != null && gain < 0.01 && now.slices > before.slices
        ? h('p', { class: 'hint' }, t('plateau', gain.toFixed(3)))
        : null,
    );
  }
  upload = guarded(async (files, folders = []) => {
    const refused = folders.map((name) => t('folderDropped', name));
    for (const file of files) {
      say(t('adding', file.name));
      const body = new FormData();
      body.append('file', file, file.name);
      try {
        await call('cases', { method: 'POST', body });
        say(t('added', file.name));
      } catch (error) {
        refused.push(`${file.name}: ${error.message}`);
      }
    }
    await this.refresh();
    if (refused.length) say(refused.join('\n'), true);
  });
  // Review.
  results() {
    return this.state.cases
      .filter((one) => one.status === 'to review' || one.status === 'accepted')
      .sort((a, b) => (a.status === 'accepted') - (b.status === 'accepted') || (a.quality ?? 2) - (b.quality ?? 2));
  }
  drawReview() {
    const found = this.results();
    if (!found.some((one) => one.id === this.chosen)) this.chosen = null;
    const judge = (one, verdict) =>
      guarded(async () => {
        const open = found.filter((other) => other.status === 'to review'),
          next = verdict === 'accept' && open[open.indexOf(one) + 1];
        try {
          await post(`cases/${one.id}/verdict`, { verdict, state: one.result_state });
          if (next && this.chosen === one.id) {
            this.chosen = next.id;
            if ($(`#result-${one.id}`)?.contains(document.activeElement))
              $(`#result-${next.id}`)?.focus({ preventScroll: true });
          }
        } finally {
          await this.refresh(); // also where the segmentation has changed, so that its picture is loaded again
        }
      });
    fill(
      $('#review'),
      h('p', {}, found.length ? t('reviewIntro') : t('nothingToReview')),
      found.length
        ? h(
            'ul',
            { class: 'legend' },
            this.state.labels.map((one) => h('li', {}, h('i', { style: `background: ${one.colour}` }), one.name)),
          )
        : '',
      h(
        'ol',
        { class: 'queue' },
        found.map((one) =>
          h(
            'li',
            {
              id: `result-${one.id}`,
              'data-case': one.name,
              tabindex: -1,
              class: [one.status === 'accepted' && 'settled', one.id === this.chosen && 'chosen']
                .filter(Boolean)
                .join(' '),
              'aria-current': one.id === this.chosen && 'true',
            },
            this.picture(`cases/${one.id}/overlay.png?${one.scan_state}-${one.result_state}`),
            h(
              'div',
              {},
              h('strong', {}, breakable(one.name)),
              one.quality != null &&
                h('meter', {
                  min: 0,
                  max: 1,
                  low: 0.6,
                  high: 0.8,
                  optimum: 1,
                  value: one.quality,
                  title: t('quality', one.quality.toFixed(2)),
                }),
              one.quality != null && h('span', {}, t('quality', one.quality.toFixed(2))),
              one.flags.length ? h('p', { class: 'hint' }, one.flags.join('; ')) : null,
            ),
            h(
              'div',
              { class: 'row' },
              one.status === 'accepted'
                ? h('button', { 'data-key': 'b', onclick: judge(one, 'send back') }, t('sendBack'))
                : [
                    h(
                      'button',
                      {
                        id: `accept-${one.id}-${one.result_state}`, // another segmentation needs a click of its own
                        class: 'main',
                        'data-key': 'a',
                        onclick: judge(one, 'accept'),
                      },
                      t('accept'),
                    ),
                    h(
                      'button',
                      { 'data-key': 'c', disabled: one.in_use, onclick: () => this.show('label', one.id) },
                      t('correct'),
                    ),
                  ],
            ),
          ),
        ),
      ),
    );
  }
  drawExport() {
    const forms = ['nifti', 'nnunet', ...(this.state.dicom ? ['dicom-seg'] : []), 'report'];
    fill(
      $('#export'),
      h('p', {}, t('exportIntro')),
      h(
        'ul',
        { class: 'exports' },
        forms.map((form) =>
          h(
            'li',
            {},
            h('h2', {}, t(`export_${form}`)),
            h('p', { class: 'hint' }, t(`about_${form}`)),
            h(
              'button',
              { 'data-form': form, 'aria-label': t(`export_${form}`), onclick: guarded(() => this.download(form)) },
              t('download'),
            ),
          ),
        ),
      ),
    );
  }
  async download(form) {
    const blob = await (await call(`export/${form}`)).blob(),
      link = h('a', { href: URL.createObjectURL(blob), download: `handful-${form}.zip` });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000); // by then the browser has begun to save it
  }
  help() {
    const box = $('#help'),
      listed = (keys) =>
        h(
          'dl',
          {},
          keys.flatMap(([key, meaning]) => [h('dt', {}, h('kbd', {}, key)), h('dd', {}, meaning)]),
        );
    box.replaceChildren(
      h('div', { class: 'head' }, h('h2', {}, t('helpTitle')), h('button', { onclick: () => box.close() }, t('close'))),
      h(
        'div',
        { class: 'keys' },
        T.keys.map(([view, keys]) => h('section', {}, h('h3', {}, view), listed(keys))),
      ),
    );
    box.showModal();
  }
}
window.handful = new App();
