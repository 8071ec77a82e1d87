// Elements without a library: h('button', {class: 'x', onclick: f}, 'text').
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element[name] = value;
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}
export const $ = (selector) => document.querySelector(selector);
// Give an element these children. Those that are there already stay, so that the focus, typed text, open details and a
// click that has begun are kept; `id`, `data-key` and `src` say which are the same. If the focused one is left out, the
// focus goes to the nearest element around it that may have it.
export function fill(element, ...children) {
  const focused = document.activeElement,
    around = focused?.parentElement?.closest('[tabindex="-1"]');
  arrange(element, [...h('div', {}, ...children).childNodes]);
  if (document.activeElement === focused) return;
  const next = [focused, document.getElementById(focused.id), around].find((one) => one?.isConnected);
  next?.focus({ preventScroll: true });
}
const same = (one, other) =>
  one.nodeName === other.nodeName &&
  (one.nodeType === Node.TEXT_NODE ||
    ['id', 'data-key', 'src'].every((name) => one.getAttribute(name) === other.getAttribute(name)));
function arrange(element, children) {
  const left = [...element.childNodes];
  const wanted = children.map((child) => {
    const place = left.findIndex((one) => same(one, child));
    if (place < 0) return child;
    const [kept] = left.splice(place, 1);
    update(kept, child);
    return kept;
  });
  for (const one of left) one.remove();
  wanted.forEach((one, i) => {
    if (element.childNodes[i] !== one) element.insertBefore(one, element.childNodes[i] ?? null);
  });
}
// A field keeps what somebody has typed as long as that differs from the text that the page gave it.
function update(kept, fresh) {
  if (kept.nodeType === Node.TEXT_NODE) {
    if (kept.data !== fresh.data) kept.data = fresh.data;
    return;
  }
  const typed = kept.value !== kept.defaultValue;
  for (const { name } of [...kept.attributes])
    if (name !== 'open' && !fresh.hasAttribute(name)) kept.removeAttribute(name);
  for (const { name, value } of fresh.attributes)
    if (kept.getAttribute(name) !== value) kept.setAttribute(name, value);
  for (const name of ['onclick', 'onchange']) kept[name] = fresh[name];
  arrange(kept, [...fresh.childNodes]);
  if (kept.tagName === 'SELECT' || ('defaultValue' in kept && !typed)) kept.value = fresh.value;
}
// The message lies above the buttons under the slice, which it would otherwise cover.
export function placeMessage() {
  const box = $('#message'),
    bar = $('.under').getBoundingClientRect();
  box.style.bottom = '';
  const { top, bottom } = box.getBoundingClientRect();
  if (bar.top < bottom && bar.bottom > top) box.style.bottom = `${innerHeight - bar.top + 8}px`;
}
let timer;
export function say(text, bad = false) {
  const box = $('#message');
  box.textContent = text.charAt(0).toUpperCase() + text.slice(1);
  box.className = bad ? 'bad' : '';
  box.hidden = false;
  placeMessage();
  clearTimeout(timer);
  timer = setTimeout(
    () => {
      box.hidden = true;
    },
    bad ? 9000 : 3500,
  );
}
export const guarded =
  (work) =>
  async (...given) => {
    try {
      return await work(...given);
    } catch (error) {
      say(error.message, true);
    }
  };
// The parts red, green and blue of a colour such as #56B4E9.
export const rgb = (colour) => [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
