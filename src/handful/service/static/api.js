// Calls of the service. Every request names this tab, so that two tabs do not work on one case.
import { t } from './texts.js';

// The name is stored only while the page is left: a duplicated tab has a copy of what is stored.
export const tab = sessionStorage.annotator ?? crypto.getRandomValues(new Uint32Array(3)).join('-');
const forget = () => sessionStorage.removeItem('annotator');
forget();
addEventListener('pagehide', () => (sessionStorage.annotator = tab));
addEventListener('pageshow', forget);

export async function call(path, { method = 'GET', json, body, keepalive = false } = {}) {
  const headers = { 'x-annotator': tab };
  if (json !== undefined) {
    headers['content-type'] = 'application/json';
    body = JSON.stringify(json);
  }
  let answer;
  try {
    answer = await fetch(`api/${path}`, { method, headers, body, keepalive });
  } catch {
    throw new Error(t('lost'));
  }
  if (!answer.ok) {
    const content = await answer.json().catch(() => ({}));
    const detail = content.error ?? (Array.isArray(content.detail) ? content.detail[0]?.msg : content.detail);
    throw new Error(detail ?? `${answer.status} ${answer.statusText}`);
  }
  return answer;
}
export const get = async (path) => (await call(path)).json();
export const post = async (path, json, method = 'POST') => (await call(path, { method, json })).json();
export const picture = (path) => `api/${path}`;

// Steps are carried out one after the other, in the order in which they were made.
let last = Promise.resolve();
export function inOrder(work) {
  const next = last.then(work, work);
  last = next.catch(() => {});
  return next;
}
