// Line charts and stacked charts as inline SVG, redrawn at the width they get. The legend is the read-out: it shows the
// newest values, and those of a step while a pointer or the arrow keys are on it.

const CHART_HEIGHT = 190;
const SMOOTH_FROM = 60; // points; from here the line of single steps is thin and a running mean is drawn over it

// series: [{label, color, xs, ys, dash}], ys may hold null; marks: [{x, label}]; stacked: ys are shares on each other.
function chart({ title, note, series, marks = [], stacked = false, zero = false, format = number }) {
  const drawn = series.filter((one) => one.ys.some((value) => value !== null));
  if (!drawn.length) return null;
  const plot = svg('svg', { class: 'plot', tabindex: 0, role: 'img', height: CHART_HEIGHT });
  const legend = el('ul', { class: 'legend' });
  const place = el('span', { class: 'place', 'aria-live': 'polite' });
  const figure = el('figure', { class: 'chart' },
    el('figcaption', {}, el('span', { class: 'chart-title' }, title), place), legend, plot,
    note ? el('p', { class: 'chart-note' }, note) : null);
  const steps = [...new Set(drawn.flatMap((one) => one.xs))].sort((a, b) => a - b);
  const values = drawn.map((one) => one.ys.filter((value) => value !== null));
  plot.setAttribute('aria-label', title + ', steps ' + steps[0] + ' to ' + steps.at(-1) + '. Newest: ' +
    drawn.map((one, i) => one.label + ' ' + format(values[i].at(-1))).join(', ') + '. Arrow keys read single steps.');
  const outputs = drawn.map((one) => el('b', {}));
  legend.append(...drawn.map((one, i) => el('li', {},
    el('i', { class: stacked ? 'swatch' : one.dash ? 'swatch line ' + (one.dash[0] === '2' ? 'dotted' : 'dashed') : 'swatch line', style: { '--color': one.color } }), one.label, outputs[i])));

  let scales = null;
  let cursor = null;
  function read(step) {
    cursor = step;
    place.textContent = step === null ? '' : 'step ' + step;
    drawn.forEach((one, i) => {
      const at = step === null ? -1 : one.xs.indexOf(step);
      outputs[i].textContent = format(step === null ? values[i].at(-1) : at < 0 ? null : one.ys[at]);
    });
    plot.querySelector('.cursor')?.remove();
    if (step !== null && scales) plot.append(cursorAt(step, scales, drawn, stacked));
  }
  function draw(width) {
    scales = axes(plot, width, steps, stacked ? [0, 1] : extent(values.flat(), zero), stacked ? percent : tickText);
    for (const mark of marks) if (mark.x > steps[0] && mark.x <= steps.at(-1)) plot.append(markAt(mark, scales));
    if (stacked) plot.append(...layers(drawn, scales, steps));
    else for (const one of drawn) plot.append(...lines(one, scales));
    read(cursor);
  }
  plot.addEventListener('pointermove', (event) => {
    const x = scales.invert(event.clientX - plot.getBoundingClientRect().left);
    read(steps.reduce((best, step) => (Math.abs(step - x) < Math.abs(best - x) ? step : best), steps[0]));
  });
  plot.addEventListener('pointerleave', () => read(null));
  plot.addEventListener('blur', () => read(null));
  plot.addEventListener('keydown', (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const at = cursor === null ? (move < 0 ? steps.length : -1) : steps.indexOf(cursor);
    read(steps[Math.min(steps.length - 1, Math.max(0, at + move))]);
  });
  read(null);
  whenSized(figure, draw);
  return figure;
}

// Calls `draw` with the inner width now and whenever it changes.
function whenSized(node, draw) {
  let last = 0;
  new ResizeObserver(() => {
    const style = getComputedStyle(node);
    const width = Math.floor(node.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight));
    if (width > 0 && width !== last) draw(last = width);
  }).observe(node);
}

function extent(values, zero) {
  let low = values[0];
  let high = values[0];
  for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
  if (zero) [low, high] = [Math.min(low, 0), Math.max(high, 0)];
  if (low === high) [low, high] = low === 0 ? [0, 1] : [low - Math.abs(low) / 2, high + Math.abs(high) / 2];
  return [low, high];
}

// Round numbers that cover [low, high], `wanted` of them or a few more.
function ticks(low, high, wanted) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const gap = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const found = [];
  for (let i = Math.floor(low / gap); i * gap < high + gap * 0.999; i += 1) found.push(Number((i * gap).toPrecision(12)));
  return found;
}

// Ticks are round, so they need no padding with zeros.
function tickText(value) {
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e4) ? number(value) : minus(String(value));
}

function axes(plot, width, steps, [low, high], format, xLabel = 'step') {
  const levels = ticks(low, high, 4);
  const [bottom, top] = [levels[0], levels.at(-1)];
  const left = 12 + 6.8 * Math.max(...levels.map((level) => format(level).length));
  const box = { left, right: width - 10, top: 8, bottom: CHART_HEIGHT - 34 };
  const [first, last] = [steps[0], steps.at(-1)];
  const x = (value) => (first === last ? (box.left + box.right) / 2
    : box.left + ((value - first) / (last - first)) * (box.right - box.left));
  const y = (value) => box.bottom - ((value - bottom) / (top - bottom)) * (box.bottom - box.top);
  const invert = (pixel) => first + ((pixel - box.left) / (box.right - box.left)) * (last - first);
  plot.setAttribute('width', width);
  plot.setAttribute('viewBox', `0 0 ${width} ${CHART_HEIGHT}`);
  const across = (first === last ? [first] : ticks(first, last, Math.max(2, Math.floor(width / 90))))
    .filter((tick) => Number.isInteger(tick) && tick >= first && tick <= last);
  replace(plot,
    levels.map((level) => [
      svg('line', { class: level === 0 ? 'grid zero' : 'grid', x1: box.left, x2: box.right, y1: y(level), y2: y(level) }),
      svg('text', { class: 'tick', x: box.left - 6, y: y(level) + 4, 'text-anchor': 'end' }, format(level))]),
    across.map((tick) => svg('text', { class: 'tick', x: x(tick), y: box.bottom + 16, 'text-anchor': 'middle' }, number(tick))),
    svg('text', { class: 'tick name', x: box.right, y: CHART_HEIGHT - 4, 'text-anchor': 'end' }, xLabel));
  return { x, y, invert, box };
}

function lines(one, { x, y }) {
  const points = one.xs.map((step, i) => [step, one.ys[i]]).filter(([, value]) => value !== null);
  const path = (pairs, name) => svg('path', {
    class: name, d: pairs.map(([step, value], i) => (i ? 'L' : 'M') + x(step).toFixed(1) + ' ' + y(value).toFixed(1)).join(''),
    style: { stroke: one.color, 'stroke-dasharray': one.dash || 'none' },
  });
  if (points.length >= SMOOTH_FROM) return [path(points, 'curve thin'), path(runningMean(points), 'curve')];
  const dots = points.length <= 30
    ? points.map(([step, value]) => svg('circle', { class: 'dot', cx: x(step), cy: y(value), r: 2.5, style: { fill: one.color } }))
    : [];
  return [path(points, 'curve'), ...dots];
}

function runningMean(points) {
  const half = Math.max(2, Math.round(points.length / 40));
  return points.map(([step], i) => {
    const near = points.slice(Math.max(0, i - half), i + half + 1);
    return [step, mean(near.map(([, value]) => value))];
  });
}

function layers(series, { x, y, box }, steps) {
  const half = steps.length > 1 ? (x(steps[1]) - x(steps[0])) / 2 : 20;
  const base = steps.map(() => 0);
  return series.map((one) => {
    const areas = steps.map((step, i) => {
      const value = one.ys[i] || 0;
      const [low, high] = [y(base[i]), y(base[i] += value)];
      if (!value) return '';
      const [from, to] = [Math.max(box.left, x(step) - half), Math.min(box.right, x(step) + half)];
      return `M${from.toFixed(1)} ${low.toFixed(1)}V${high.toFixed(1)}H${to.toFixed(1)}V${low.toFixed(1)}Z`;
    });
    return svg('path', { class: 'layer', d: areas.join(''), style: { fill: one.color } });
  });
}

function markAt({ x: step, label }, { x, box }) {
  const right = x(step) > (box.left + box.right) / 2;
  return svg('g', { class: 'mark' },
    svg('line', { x1: x(step), x2: x(step), y1: box.top, y2: box.bottom }),
    svg('text', { x: x(step) + (right ? -5 : 5), y: box.top + 10, 'text-anchor': right ? 'end' : 'start' }, label));
}

function cursorAt(step, { x, y, box }, series, stacked) {
  const dots = stacked ? [] : series.flatMap((one) => {
    const value = one.ys[one.xs.indexOf(step)];
    return value === null || value === undefined ? []
      : [svg('circle', { cx: x(step), cy: y(value), r: 4, style: { fill: one.color } })];
  });
  return svg('g', { class: 'cursor' }, svg('line', { x1: x(step), x2: x(step), y1: box.top, y2: box.bottom }), dots);
}
