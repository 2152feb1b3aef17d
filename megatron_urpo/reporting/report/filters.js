// The fields above the list of groups, and the words that say which groups the page holds.

function filterFields(data, rows, changed) {
  const choose = (label, options) => {
    const node = el('select', {}, options.map(([value, name]) => el('option', { value }, name)));
    return { node, label: el('label', {}, el('span', {}, label), node) };
  };
  const type = (label, properties) => {
    const node = el('input', properties);
    return { node, label: el('label', {}, el('span', {}, label), node) };
  };
  const causes = [...new Set(rows.map((row) => row.group.dropped).filter(Boolean))].sort();
  const outcomes = [...new Set(rows.flatMap((row) => [...row.outcomes]))].sort();
  const flags = Object.keys(data.flags).filter((flag) => rows.some((row) => row.flags.has(flag)));
  const steps = data.sample.kept.map((kept) => kept.step);
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  const fields = {
    text: type('Text contains', { type: 'search', placeholder: 'prompt, answer or verdict', autocomplete: 'off' }),
    task: choose('Task', [['', 'all'], ...TASKS.filter((task) => rows.some((row) => row.group.task === task)).map((task) => [task, task])]),
    flag: choose('Sign', [['', 'any or none'], ['any', 'any sign'], ...flags.map((flag) => [flag, flag])]),
    outcome: choose('Outcome', [['', 'any'], ['t:', 'trained on'], ['a:', 'dropped, any cause'],
      ...causes.map((cause) => ['d:' + cause, 'dropped: ' + words(cause)]), ...outcomes.map((outcome) => ['o:' + outcome, 'contains: ' + words(outcome)])]),
    fromStep: type('From step', { type: 'number', min: first, max: last, placeholder: first, inputmode: 'numeric' }),
    toStep: type('To step', { type: 'number', min: first, max: last, placeholder: last, inputmode: 'numeric' }),
    low: type('Reward from', { type: 'number', step: 'any', placeholder: 'lowest' }),
    high: type('Reward to', { type: 'number', step: 'any', placeholder: 'highest' }),
    sort: choose('Sort', Object.entries(SORTS).map(([value, [name]]) => [value, name])),
  };
  const write = (wanted) => {
    for (const [name, field] of Object.entries(fields)) {
      if (name !== 'sort' || wanted.sort) field.node.value = wanted[name] ?? '';
    }
  };
  const form = el('form', { class: 'filters', 'aria-label': 'Filter the groups', onsubmit: (event) => event.preventDefault() },
    Object.entries(fields).map(([name, field]) => { field.node.name = name; field.label.classList.add('field-' + name); return field.label; }),
    el('button', { type: 'button', class: 'clear', onclick: () => { write({}); changed(); } }, 'Clear filters'));
  let waiting = 0;
  form.addEventListener('input', () => { clearTimeout(waiting); waiting = setTimeout(changed, 120); });
  const numeric = (field) => (field.node.value === '' || Number.isNaN(Number(field.node.value)) ? null : Number(field.node.value));
  return {
    node: form,
    write,
    read: () => ({
      text: fields.text.node.value.trim().toLowerCase(), task: fields.task.node.value, outcome: fields.outcome.node.value,
      flag: fields.flag.node.value, sort: fields.sort.node.value, fromStep: numeric(fields.fromStep), toStep: numeric(fields.toStep),
      low: numeric(fields.low), high: numeric(fields.high),
    }),
  };
}

function sampleRule(data) {
  const { sample, run } = data;
  if (!sample.groups.length) {
    return run.transcripts_off ? 'This run wrote no transcripts (logging.transcripts is off), so there are no groups to read.'
      : 'No transcript has been written yet.';
  }
  const all = sample.steps_with_transcript;
  const partial = sample.kept.filter((kept) => kept.groups < kept.of);
  const held = sample.kept.reduce((sum, kept) => sum + kept.groups, 0);
  if (sample.kept.length === all && !partial.length) return `All ${count(held, 'group')} of all ${count(all, 'step')} with a transcript.`;
  return `A sample, so that this page stays small: ${sample.kept.length} of ${count(all, 'step')} with a transcript, the newest and, evenly spaced, older ones. ` +
    (partial.length ? `In ${count(partial.length, 'step')} of these not every group fits: up to half the room went to the most suspicious groups, the rest to groups spread through the step ` +
      `(${number(held)} of ${number(sample.kept.reduce((sum, kept) => sum + kept.of, 0))} groups are here). `
      : 'Every group of these steps is here. ') + 'The folder transcripts/ has all.';
}
