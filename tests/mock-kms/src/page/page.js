// Fetches page.json every second and draws it. All text goes in as text nodes: names and descriptions are callers'.
'use strict';

const REFRESH_MS = 1000;
const PLOT = { left: 64, right: 990, top: 12, bottom: 250, leastMs: 1, mostMs: 1000 };
const openCalls = new Set();
const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const svgNames = ['line', 'text', 'circle', 'g', 'title', 'path'];
  const made = svgNames.includes(name)
    ? document.createElementNS('http://www.w3.org/2000/svg', name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const ms = (value) => (value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`);
const bytes = (count) => `${count.toLocaleString('en')} ${count === 1 ? 'byte' : 'bytes'}`;
const days = (count) => `${count} ${Math.abs(count) === 1 ? 'day' : 'days'}`;
const time = (unixMs) => new Date(unixMs).toISOString().slice(11, 23);
const empty = (text) => element('p', { class: 'empty' }, text);

function badge(text) {
  const tones = {
    CONNECTED: 'good', Enabled: 'good', ACTIVE: 'good', FAILED: 'bad', Unavailable: 'bad', UNAVAILABLE: 'bad',
    CONNECTING: 'warn', DISCONNECTING: 'warn', PendingDeletion: 'warn', DEGRADED: 'warn',
  };
  return element('span', { class: `badge ${tones[text] ?? ''}` }, text);
}

function storeCard(store) {
  const facts = [];
  const fact = (term, ...value) => facts.push(element('dt', {}, term), element('dd', {}, ...value));
  if (store.connectionErrorCode) fact('Error', element('span', { class: 'bad' }, store.connectionErrorCode));
  if (store.health) {
    const managers = store.health.ekmFleetDetails.flatMap((manager) => [badge(manager.healthStatus), ` ${manager.model} `]);
    fact('Key managers', ...managers);
    fact('Proxy', `${store.health.xksProxyModel} by ${store.health.xksProxyVendor}, fleet of ${store.health.xksProxyFleetSize}`);
  }
  const mean = store.meanLatencyMs === null ? '' : `, mean ${ms(store.meanLatencyMs)}`;
  fact('Proxy calls', `${store.calls}${mean}`);
  for (const { kind, count, isRetryable } of store.errors) {
    fact('Errors', element('span', { class: 'bad' }, `${count} × ${kind}`), isRetryable ? ' (retryable)' : '');
  }
  if (store.throttled) fact('Throttled', `${store.throttled} over the quota`);
  if (store.certificate) {
    const left = store.certificate.daysToExpire;
    const names = store.certificate.commonNames.join(', ') || 'no common name';
    fact('Certificate', `${names}, `, element('span', { class: left < 10 ? 'bad' : '' }, `${days(left)} left`));
  }
  fact('Credential', element('code', {}, store.accessKeyId), `, ${days(store.credentialAgeDays)} old`);
  fact('KMS keys', `${store.keys}`);
  return element('article', { class: 'card' },
    element('h3', {}, store.name, badge(store.connectionState)),
    element('code', {}, store.uri), element('br'), element('code', {}, `${store.id} · ${store.connectivity}`),
    element('dl', {}, ...facts));
}

function keyRow(key, storeNames) {
  const title = key.description ? { title: key.description } : {};
  return element('tr', { class: 'row', ...title },
    element('td', {}, element('code', {}, key.id)),
    element('td', {}, key.aliases.join(', ')),
    element('td', {}, badge(key.state)),
    element('td', {}, key.origin),
    element('td', {}, storeNames.get(key.storeId) ?? ''),
    element('td', {}, element('code', {}, key.xksKeyId ?? '')));
}

function callRows(call) {
  const isOpen = openCalls.has(call.number);
  const toggle = element('button', { class: 'open', 'aria-expanded': String(isOpen) }, `${isOpen ? '▾' : '▸'} ${call.kmsOperation}`);
  toggle.addEventListener('click', () => {
    if (!openCalls.delete(call.number)) openCalls.add(call.number);
    draw();
  });
  const outcome = call.exception
    ? element('span', { class: 'bad' }, call.exception)
    : element('span', { class: 'good' }, 'ok');
  const proxyCalls = call.proxyCalls.map((proxy) => {
    const again = proxy.tries > 1 ? `, ${proxy.tries} tries` : '';
    return element('div', { class: proxy.failure ? 'bad' : '' }, `${proxy.operation} ${ms(proxy.totalMs)}${again}`);
  });
  const row = element('tr', { class: 'row' },
    element('td', { class: 'number muted' }, `${call.number}`),
    element('td', {}, time(call.atUnixMs)),
    element('td', {}, toggle),
    element('td', {}, outcome),
    element('td', { class: 'number' }, ms(call.durationMs)),
    element('td', {}, ...proxyCalls));
  return isOpen ? [row, element('tr', { class: 'detail' }, element('td', { colspan: 6 }, ...callDetail(call)))] : [row];
}

function callDetail(call) {
  const parts = [];
  if (call.message) parts.push(element('p', { class: 'message bad' }, call.message));
  if (call.layers.length) {
    const most = Math.max(...call.layers.map((layer) => layer.bytes), 1);
    parts.push(element('div', { class: 'layers' }, ...call.layers.flatMap((layer) => {
      const isSecret = layer.startHex === '' && layer.bytes > 0;
      const bar = element('div', { class: `bar ${isSecret ? 'secret' : ''}` });
      bar.style.width = `${(100 * layer.bytes) / most}%`;
      const more = layer.startHex.length / 2 < layer.bytes ? ' …' : '';
      const shown = isSecret ? element('span', { class: 'muted' }, 'not shown') : `${layer.startHex}${more}`;
      return [
        element('div', {}, layer.name), element('div', { class: 'number' }, bytes(layer.bytes)),
        element('div', { class: 'track' }, bar), element('div', { class: 'hex' }, shown),
      ];
    })));
  }
  for (const proxy of call.proxyCalls) {
    const connection = proxy.isReused ? 'kept connection'
      : [proxy.tcpMs === null ? 'no connection' : `TCP ${ms(proxy.tcpMs)}`, proxy.tlsMs === null ? null : `TLS ${ms(proxy.tlsMs)}`].filter(Boolean).join(', ');
    const sizes = `${bytes(proxy.requestBytes)} there, ${proxy.answerBytes === null ? 'nothing' : bytes(proxy.answerBytes)} back`;
    const facts = [proxy.operation, proxy.httpVersion, connection, `last try ${ms(proxy.lastTryMs)}`, sizes, proxy.failure];
    parts.push(element('p', { class: 'facts' }, facts.filter(Boolean).join(' · ')));
  }
  const caller = call.caller ? ` · ${call.caller}` : '';
  parts.push(element('p', { class: 'facts' }, 'request ', element('code', {}, call.requestId), caller));
  return parts;
}

function drawPlot(page) {
  const scale = (value) => {
    const bounded = Math.min(Math.max(value, PLOT.leastMs), PLOT.mostMs);
    const share = Math.log(bounded / PLOT.leastMs) / Math.log(PLOT.mostMs / PLOT.leastMs);
    return PLOT.bottom - share * (PLOT.bottom - PLOT.top);
  };
  const line = (value, kind, label, labelKind = '') => [
    element('line', { class: kind, x1: PLOT.left, x2: PLOT.right, y1: scale(value), y2: scale(value) }),
    element('text', { class: `axis ${labelKind}`, x: PLOT.left - 8, y: scale(value) + 4, 'text-anchor': 'end' }, label),
  ];
  const marks = [1, 3, 10, 30, 100, 1000].flatMap((value) => line(value, 'grid', `${value} ms`));
  marks.push(...line(page.timeoutMs, 'limit', `${page.timeoutMs} ms`, 'limit-text'));
  const calls = page.calls.flatMap((call) => call.proxyCalls.map((proxy) => ({ ...proxy, call }))).reverse();
  const step = (PLOT.right - PLOT.left - 20) / Math.max(calls.length, 40);
  calls.forEach((proxy, index) => {
    const [x, y] = [PLOT.right - 10 - (calls.length - index - 0.5) * step, scale(proxy.lastTryMs)];
    const mark = proxy.failure
      ? element('path', { class: 'cross', d: `M${x - 4} ${y - 4}l8 8m0 -8l-8 8` })
      : element('circle', { class: 'dot', cx: x, cy: y, r: 3.5 });
    const ring = proxy.tries > 1 ? element('circle', { class: 'ring', cx: x, cy: y, r: 7 }) : null;
    const words = `#${proxy.call.number} ${proxy.call.kmsOperation}: ${proxy.operation} ${ms(proxy.lastTryMs)}`;
    marks.push(element('g', {}, element('title', {}, proxy.failure ? `${words}, ${proxy.failure}` : words), mark, ring));
  });
  marks.push(element('text', { class: 'axis', x: PLOT.left, y: 274 }, 'earlier'));
  marks.push(element('text', { class: 'axis', x: PLOT.right, y: 274, 'text-anchor': 'end' }, 'latest'));
  byId('plot').replaceChildren(...marks);
  const late = calls.filter((proxy) => proxy.lastTryMs >= page.timeoutMs).length;
  byId('plot-summary').textContent = calls.length ? `last ${calls.length} calls, ${late} at the time-out` : 'no calls yet';
}

let page = null;
let drawn = '';

function draw() {
  if (page === null) return;
  const focused = document.activeElement?.closest?.('tr')?.dataset.number;
  byId('where').textContent = `${page.endpoint} · ${page.region} · account ${page.accountId}`;
  byId('stores').replaceChildren(...(page.stores.length ? page.stores.map(storeCard) : [empty('No external key store yet.')]));
  drawPlot(page);
  const storeNames = new Map(page.stores.map((store) => [store.id, store.name]));
  const nothing = (text) => [element('tr', {}, element('td', { colspan: 6, class: 'muted' }, text))];
  const keys = page.keys.map((key) => keyRow(key, storeNames));
  byId('keys').replaceChildren(...(keys.length ? keys : nothing('No KMS key yet.')));
  const calls = page.calls.flatMap((call) => {
    const rows = callRows(call);
    rows[0].dataset.number = call.number;
    return rows;
  });
  byId('calls').replaceChildren(...(calls.length ? calls : nothing('No call yet.')));
  if (focused) byId('calls').querySelector(`tr[data-number="${focused}"] button`)?.focus();
}

async function refresh() {
  const pulse = byId('pulse');
  try {
    const answer = await fetch('page.json', { cache: 'no-store' });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    page = await answer.json();
    const content = JSON.stringify({ ...page, nowUnixMs: 0 });
    // What has not changed stays: a reader may be selecting it.
    if (content !== drawn) draw();
    drawn = content;
    pulse.textContent = `as of ${new Date(page.nowUnixMs).toISOString().slice(0, 19).replace('T', ' ')} UTC`;
    pulse.className = '';
  } catch (error) {
    pulse.textContent = `not answering (${error.message})`;
    pulse.className = 'stale';
  }
  setTimeout(refresh, REFRESH_MS);
}

// `/#call-7` opens call 7.
function openFromAddress() {
  const number = location.hash.match(/^#call-(\d+)$/)?.[1];
  if (number) openCalls.add(Number(number));
  draw();
}

addEventListener('hashchange', openFromAddress);
openFromAddress();
refresh();
