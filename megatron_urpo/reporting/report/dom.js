// Elements, numbers and text. Text of a run reaches the page through `shown` and `plain` alone, never as markup.

const SVG = 'http://www.w3.org/2000/svg';

// Control characters without tab and line end, marks of direction, zero width, invisible operators, tags, and halves
// of surrogate pairs. Joiners stay as they are: emoji and several scripts need them.
const HIDDEN = new RegExp(
  '[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u180e\\u200b\\u200e\\u200f\\u2028-\\u202e' +
  '\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb\\u{e0000}-\\u{e007f}\\ud800-\\udfff]', 'gu');
const HIDDEN_NAMES = {
  0x0d: 'CR', 0x1b: 'ESC', 0x7f: 'DEL', 0xad: 'soft hyphen', 0x061c: 'ALM', 0x200b: 'ZWSP', 0x200e: 'LRM',
  0x200f: 'RLM', 0x2028: 'LS', 0x2029: 'PS', 0x202a: 'LRE', 0x202b: 'RLE', 0x202c: 'PDF', 0x202d: 'LRO',
  0x202e: 'RLO', 0x2066: 'LRI', 0x2067: 'RLI', 0x2068: 'FSI', 0x2069: 'PDI', 0xfeff: 'BOM',
};

function el(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

function svg(tag, properties, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

// `onname` are listeners, `style` an object of CSS properties, everything else attributes; null and false are left out.
function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'style') for (const [key, css] of Object.entries(value)) node.style.setProperty(key, css);
    else node.setAttribute(name, value === true ? '' : value);
  }
  for (const child of children.flat(3)) if (child !== null && child !== undefined) node.append(child);
  return node;
}

function replace(node, ...children) {
  node.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined));
}

function hiddenName(character) {
  const code = character.codePointAt(0);
  return 'U+' + code.toString(16).toUpperCase().padStart(4, '0') + (HIDDEN_NAMES[code] ? ' ' + HIDDEN_NAMES[code] : '');
}

// Text of a run as nodes: what cannot be seen, or would turn the text around, is written out.
function shown(text) {
  const nodes = [];
  let start = 0;
  for (const match of String(text).matchAll(HIDDEN)) {
    if (match.index > start) nodes.push(document.createTextNode(text.slice(start, match.index)));
    nodes.push(el('span', { class: 'hidden-character' }, hiddenName(match[0])));
    start = match.index + match[0].length;
  }
  nodes.push(document.createTextNode(String(text).slice(start)));
  return nodes;
}

// The same for places that hold a string: labels, attributes, one-line snippets.
function plain(text) {
  return String(text).replace(HIDDEN, (character) => '<' + hiddenName(character) + '>');
}

function number(value, digits = 3) {
  if (typeof value !== 'number') return '\u2013';
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return minus(value.toExponential(1).replace('e+', 'e'));
  if (Number.isInteger(value)) return minus(size >= 10000 ? value.toLocaleString('en') : String(value));
  return minus(value.toFixed(size >= 1000 ? 0 : size >= 100 ? Math.min(1, digits) : size >= 10 ? Math.min(2, digits) : digits));
}

function signed(value, digits = 3) {
  if (value === null || value === undefined) return '\u2013';
  return (value > 0 ? '+' : value === 0 ? '\u00b1' : '') + number(value, digits);
}

function percent(value) {
  return value > 0 && value < 0.01 ? '<1%' : Math.round(value * 100) + '%';
}

function duration(seconds) {
  if (seconds < 90) return number(seconds, 1) + ' s';
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? minutes + ' min' : Math.floor(minutes / 60) + ' h ' + (minutes % 60) + ' min';
}

function minus(text) {
  return text.replace('-', '\u2212');
}

function mean(values) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}

function count(amount, noun) {
  return number(amount) + ' ' + noun + (amount === 1 ? '' : 's');
}

function words(name) {
  return plain(name).replaceAll('_', ' ');
}

function section(id, title, lead, ...children) {
  return el('section', { id, 'aria-labelledby': id + '-title' },
    el('h2', { id: id + '-title' }, title), lead ? el('p', { class: 'lead' }, lead) : null, ...children);
}
