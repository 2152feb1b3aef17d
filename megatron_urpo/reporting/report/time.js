// Where the seconds go: a timeline of the newest steps with one lane for each kind of work, and medians over the run.

const LANE_HEIGHT = 26;
const LANE_COLORS = {
  'time/rollout': 'var(--c1)', 'time/judge': 'var(--c2)', 'time/verify': 'var(--c3)', 'time/logprobs': 'var(--c5)',
  'time/update': 'var(--c4)', 'time/weight_sync': 'var(--c6)',
};

function timeSection({ time, training }) {
  const title = 'Time by phase';
  if (!time.steps.length) return section('time', title, 'No step has been timed yet.');
  const curves = ['time/step', ...time.lanes.map((lane) => lane.name)].map((name) => ({
    label: name === 'time/step' ? 'whole step' : time.lanes.find((lane) => lane.name === name).label.toLowerCase(),
    color: LANE_COLORS[name] || 'var(--text)', xs: training.steps, ys: training.series[name] || [], dash: name === 'time/step' ? '2 3' : null,
  }));
  return section('time', title,
    'Player, referee and verifier work at the same time, so their lanes overlap and their sum may exceed the step. ' +
    'Lengths are measured. Starts are not: the player is drawn from the start of the rollout, referee and verifier up to its end. ' +
    'Verdicts that are trained on (preference) are the player\u2019s time.',
    timeline(time), el('div', { class: 'split' }, medians(time), chart({ title: 'Seconds by phase', series: curves, zero: true })));
}

function medians(time) {
  const rows = [...time.lanes, { name: 'time/step', label: 'Whole step' }];
  return el('div', { class: 'card' }, el('h3', {}, 'Seconds a step'), el('table', {},
    el('thead', {}, el('tr', {}, ['Lane', 'Median', 'Share'].map((name, i) => el('th', { scope: 'col', class: i ? 'num' : null }, name)), el('th', {}, ''))),
    el('tbody', {}, rows.map(({ name, label }) => el('tr', {}, el('th', { scope: 'row' }, label),
      el('td', { class: 'num' }, number(time.summary[name].median)), el('td', { class: 'num' }, percent(time.summary[name].share)),
      el('td', { class: 'bar-cell' }, el('span', { class: 'bar', style: {
        width: 100 * Math.min(1, time.summary[name].share) + '%', '--color': LANE_COLORS[name] || 'var(--neutral)' } })))))));
}

function timeline(time) {
  const plot = svg('svg', { class: 'plot lanes', role: 'img' });
  const place = el('span', { class: 'place', 'aria-live': 'polite' });
  const { steps } = time;
  const last = el('input', { type: 'range', min: 1, max: steps.length, value: steps.length, 'aria-label': 'Last step shown' });
  const span = el('select', { 'aria-label': 'Steps shown' },
    [4, 8, 16, 32].map((size) => el('option', { value: size, selected: size === (innerWidth < 600 ? 4 : 8) }, size + ' steps')));
  const figure = el('figure', { class: 'chart' },
    el('figcaption', {}, el('span', { class: 'chart-title' }, 'Timeline'), place), plot,
    el('div', { class: 'timeline-controls' }, el('label', {}, 'Show ', span), last));
  let width = 0;
  const draw = () => drawTimeline(plot, width, time.lanes, windowOf(steps, Number(last.value), Number(span.value)), place);
  for (const control of [last, span]) control.addEventListener('input', draw);
  whenSized(figure, (size) => { width = size; draw(); });
  return figure;
}

function windowOf(steps, last, size) {
  const end = Math.max(Math.min(size, steps.length), last);
  return steps.slice(Math.max(0, end - size), end);
}

// Spans [from, to] of each lane within one step: rollout first, then the update, weights last; never outside the step.
function spans(step) {
  const whole = step['time/step'];
  const [sync, update, logprobs] = ['time/weight_sync', 'time/update', 'time/logprobs'].map((name) => step[name] || 0);
  const rolled = Math.max(0, whole - sync - update - logprobs);
  const upTo = (name) => [Math.max(0, rolled - (step[name] || 0)), rolled];
  return {
    'time/rollout': [0, Math.min(step['time/rollout'] || 0, rolled)], 'time/judge': upTo('time/judge'), 'time/verify': upTo('time/verify'),
    'time/logprobs': [rolled, rolled + logprobs], 'time/update': [rolled + logprobs, rolled + logprobs + update],
    'time/weight_sync': [whole - sync, whole],
  };
}

function drawTimeline(plot, width, lanes, steps, place) {
  const left = 76;
  const right = width - 8;
  const height = lanes.length * LANE_HEIGHT;
  const whole = steps.reduce((sum, step) => sum + step['time/step'], 0);
  const x = (seconds) => left + (seconds / whole) * (right - left);
  plot.setAttribute('width', width);
  plot.setAttribute('height', height + 44);
  plot.setAttribute('viewBox', `0 0 ${width} ${height + 44}`);
  plot.setAttribute('aria-label', `Timeline of steps ${steps[0].step} to ${steps.at(-1).step}, ${duration(whole)}. The table beside it has the medians.`);
  const nodes = lanes.map((lane, i) => [
    svg('rect', { class: i % 2 ? 'lane odd' : 'lane', x: left, y: i * LANE_HEIGHT, width: right - left, height: LANE_HEIGHT }),
    svg('text', { class: 'lane-name', x: left - 8, y: i * LANE_HEIGHT + LANE_HEIGHT / 2 + 4, 'text-anchor': 'end' }, lane.label)]);
  let start = 0;
  let lastLabel = -Infinity;
  for (const step of steps) {
    const placed = spans(step);
    nodes.push(svg('line', { class: 'grid', x1: x(start), x2: x(start), y1: 0, y2: height + 4 }));
    const middle = x(start + step['time/step'] / 2);
    if (middle - lastLabel > 34) {
      nodes.push(svg('text', { class: 'tick', x: middle, y: height + 18, 'text-anchor': 'middle' }, number(step.step)));
      lastLabel = middle;
    }
    for (const [i, lane] of lanes.entries()) {
      const [from, to] = placed[lane.name];
      if (!step[lane.name]) continue;
      nodes.push(svg('rect', {
        class: 'busy', x: x(start + from), y: i * LANE_HEIGHT + 5, width: Math.max(1.5, x(to) - x(from)), height: LANE_HEIGHT - 10, rx: 2,
        style: { fill: LANE_COLORS[lane.name] },
        onpointerenter: () => { place.textContent = `step ${step.step}: ${lane.label.toLowerCase()} ${number(step[lane.name])} s of ${number(step['time/step'])} s`; },
        onpointerleave: () => { place.textContent = ''; },
      }));
    }
    start += step['time/step'];
  }
  replace(plot, nodes, svg('line', { class: 'grid', x1: right, x2: right, y1: 0, y2: height + 4 }),
    svg('text', { class: 'tick name', x: right, y: height + 38, 'text-anchor': 'end' }, `step; the lane is ${duration(whole)} long`));
}
