// Elements without a library: h('button', {class: 'x', onclick: f}, 'text').
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter(child => child != null && child !== false));
  return element;
}
export const $ = selector => document.querySelector(selector);
let timer;
export function say(text, bad = false) {
  const box = $('#message');
  box.textContent = text; box.className = bad ? 'bad' : ''; box.hidden = false;
  clearTimeout(timer); timer = setTimeout(() => { box.hidden = true; }, bad ? 9000 : 3500);
}
export const guarded = work => async (...given) => { try { return await work(...given); } catch (error) { say(error.message, true); } };
// Colours of labels, the first as in all pictures of handful: distinct for colour-blind people (Okabe and Ito); then by the golden angle.
const OWN = [[86, 180, 233], [230, 159, 0], [0, 158, 115], [204, 121, 167], [240, 228, 66], [213, 94, 0], [0, 114, 178]];
export function colour(index) {
  if (index < OWN.length) return OWN[index];
  const hue = index * 137.508 % 360, f = n => { const k = (n + hue / 30) % 12; return Math.round(255 * (0.55 - 0.4 * Math.max(-1, Math.min(k - 3, 9 - k, 1)))); };
  return [f(0), f(8), f(4)];
}
export const css = rgb => `rgb(${rgb.join(' ')})`;
