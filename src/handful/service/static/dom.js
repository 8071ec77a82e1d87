// Elements without a library: h('button', {class: 'x', onclick: f}, 'text').
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}
export const $ = (selector) => document.querySelector(selector);
let timer;
export function say(text, bad = false) {
  const box = $('#message');
  box.textContent = text.charAt(0).toUpperCase() + text.slice(1);
  box.className = bad ? 'bad' : '';
  box.hidden = false;
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
