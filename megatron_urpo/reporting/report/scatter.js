// Self-score against length, one dot an answer: a cloud that leans to the right says that the referee pays for length,
// marked dots at the top say that it pays for something worse. A click opens the group.

const MAX_DOTS = 1500;

function scatter(groups, open) {
  const dots = groups.filter((group) => group.task === 'instruction').flatMap((group) => group.completions
    .filter((completion) => completion.reward !== null)
    .map((completion) => ({ group, length: completion.tokens, reward: completion.reward, flags: completion.flags })));
  if (dots.length < 2) return null;
  const marked = dots.filter((dot) => dot.flags.length);
  const others = dots.filter((dot) => !dot.flags.length);
  const kept = [...evenly(others, MAX_DOTS - Math.min(marked.length, MAX_DOTS / 2)), ...evenly(marked, MAX_DOTS / 2)];
  // One answer of great length must not push all others to the left edge.
  const lengths = dots.map((dot) => dot.length).sort((a, b) => a - b);
  const common = lengths[Math.floor((lengths.length - 1) * 0.98)];
  const longest = lengths.at(-1) > 3 * common ? Math.max(1, Math.ceil(common * 1.3)) : lengths.at(-1);
  const beyond = lengths.filter((length) => length > longest).length;
  const plot = svg('svg', { class: 'plot', role: 'img', height: CHART_HEIGHT,
    'aria-label': `Self-score against length of ${dots.length} answers, ${marked.length} of them with suspicious signs. The group list holds the same answers.` });
  const place = el('span', { class: 'place' });
  const figure = el('figure', { class: 'chart' },
    el('figcaption', {}, el('span', { class: 'chart-title' }, 'Self-score against length'), place),
    el('ul', { class: 'legend' },
      el('li', {}, el('i', { class: 'swatch dot', style: { '--color': 'var(--neutral)' } }), 'answer', el('b', {}, number(others.length))),
      el('li', {}, el('i', { class: 'swatch dot', style: { '--color': 'var(--bad)' } }), 'with signs', el('b', {}, number(marked.length)))),
    plot,
    el('p', { class: 'chart-note' }, (kept.length < dots.length ? `${number(kept.length)} of ${number(dots.length)} answers. ` : '') +
      (beyond ? `${count(beyond, 'longer answer')} at the right edge. ` : '') + 'A click on a dot opens its group.'));
  whenSized(figure, (width) => {
    const [low, high] = extent(kept.map((dot) => dot.reward), true);
    const { x, y } = axes(plot, width, [0, Math.max(1, longest)], [low, high], tickText, 'tokens');
    plot.append(...kept.map((dot, i) => {
      // Scores are often whole numbers: a small shift that is the same at every drawing keeps dots apart.
      const shift = ((i * 7919) % 13) / 13 - 0.5;
      return svg('circle', {
        class: dot.flags.length ? 'spot marked' : 'spot', cx: x(Math.min(dot.length, longest)) + shift * 6, cy: y(dot.reward) + (((i * 104729) % 17) / 17 - 0.5) * 6,
        r: dot.flags.length ? 3.5 : 3, onclick: () => open(dot.group),
        onpointerenter: () => { place.textContent = `step ${dot.group.step}: ${number(dot.reward)}, ${dot.length} tokens${dot.flags.length ? ', ' + dot.flags.join(', ') : ''}`; },
        onpointerleave: () => { place.textContent = ''; },
      });
    }));
  });
  return figure;
}

function evenly(items, limit) {
  if (items.length <= limit) return items;
  return Array.from({ length: Math.floor(limit) }, (_, i) => items[Math.floor((i * items.length) / limit)]);
}
