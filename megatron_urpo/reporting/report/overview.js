// Everything above the groups: where the run stands, what stands out, before and after, curves, the referee, drops.

const TASKS = ['reasoning', 'preference', 'instruction'];
const TASK_COLORS = { reasoning: 'var(--c1)', preference: 'var(--c2)', instruction: 'var(--c3)' };
const TASK_DASHES = { preference: '7 3', instruction: '2 3' };
const PALETTE = ['var(--c2)', 'var(--c4)', 'var(--c1)', 'var(--c5)', 'var(--c6)', 'var(--c7)', 'var(--c8)'];

function header(data) {
  const { run } = data;
  const done = run.num_steps !== null && run.last_step >= run.num_steps;
  const known = run.num_steps !== null;
  const state = done ? 'Finished' : run.last_step === 0 ? 'No step yet' : 'Unfinished';
  const speed = data.time.summary['time/step'];
  const commit = run.environment.commit;
  const facts = [
    ['Steps', number(run.last_step) + (known ? ' of ' + number(run.num_steps) : '')],
    ['Seconds a step', speed ? number(speed.median, 2) : '\u2013', 'median'],
    ['Time', data.time.seconds ? duration(data.time.seconds) : '\u2013', 'with evaluation'],
    ['Groups', number(data.num_groups)],
    ['Ranks', number(run.environment.world_size)],
    ['Commit', typeof commit === 'string' ? plain(commit.slice(0, 8)) : '\u2013', run.environment.uncommitted_changes ? 'with changes' : null],
  ];
  return [
    el('p', { class: 'kicker' }, 'megatron-urpo run report'),
    el('h1', {}, shown(run.name), ' ', el('span', { class: done ? 'state done' : 'state' }, state)),
    el('p', { class: 'lead' }, 'Model ', el('code', {}, shown(run.model)), '. Page made ' + run.made_at +
      (run.last_line_at ? ', newest metrics ' + run.last_line_at : '') +
      (done ? '.' : '. The run is still going or was stopped: make the page again to see more.')),
    el('dl', { class: 'facts' }, facts.map(([name, value, hint]) =>
      el('div', {}, el('dt', {}, name), el('dd', {}, el('span', {}, value), hint ? el('small', {}, ' ' + hint) : null)))),
    data.notices.length ? el('div', { class: 'notice', role: 'note' }, el('strong', {}, 'Left out. '),
      el('ul', {}, data.notices.map((notice) => el('li', {}, shown(notice))))) : null,
  ];
}

function lookFirst(data, browser) {
  const items = data.findings.map((finding) => el('li', { class: 'finding ' + finding.level },
    el('b', { class: 'level' }, finding.level === 'bad' ? 'Alarm' : 'Watch'),
    el('span', {}, el('strong', {}, shown(finding.text)), ' ', shown(finding.why))));
  const none = data.training.steps.length ? 'By the rules of thumb of this page nothing in the curves stands out.'
    : 'No training step has been recorded yet, so there is nothing to judge.';
  return section('first', 'Look here first', null,
    items.length ? el('ul', { class: 'findings' }, items) : el('p', { class: 'calm' }, none),
    el('div', { class: 'split' }, signs(data, browser), scatter(data.sample.groups, (group) => browser.open(group))));
}

// How much a completion with a sign earned, against the others of its task.
function signs(data, browser) {
  const rows = [];
  for (const task of TASKS) {
    const completions = data.sample.groups.filter((group) => group.task === task)
      .flatMap((group) => group.completions.map((completion) => ({ ...completion, all: [...completion.flags, ...group.flags] })));
    for (const flag of Object.keys(data.flags)) {
      const [with_, without] = [true, false].map((there) => completions.filter((one) => one.all.includes(flag) === there));
      const rewards = [with_, without].map((some) => mean(some.map((one) => one.reward).filter((reward) => reward !== null)));
      if (with_.length) rows.push({ task, flag, share: with_.length / completions.length, rewards });
    }
  }
  if (!rows.length) return data.sample.groups.length ? el('p', { class: 'calm' }, 'No suspicious sign in the sampled groups.') : null;
  rows.sort((a, b) => (b.task === 'instruction') - (a.task === 'instruction') || b.share - a.share);
  const pays = ({ rewards: [a, b] }) => a !== null && b !== null && a > b;
  return el('div', { class: 'card' },
    el('h3', {}, 'Suspicious signs in the sampled completions'),
    el('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Suspicious signs' }, el('table', {},
      el('thead', {}, el('tr', {}, ['Sign', 'Share', 'Mean reward', 'Others'].map((name, i) =>
        el('th', { scope: 'col', class: i ? 'num' : null }, name)))),
      el('tbody', {}, rows.map((row) => el('tr', {},
        el('td', {}, el('button', { type: 'button', class: 'link', title: data.flags[row.flag].meaning,
          onclick: () => browser.filter({ flag: row.flag, task: row.task }) }, row.flag), ' ', taskChip(row.task)),
        el('td', { class: 'num' }, percent(row.share)),
        el('td', { class: pays(row) ? 'num pays' : 'num' }, number(row.rewards[0], 2), pays(row) ? ' \u25b2' : ''),
        el('td', { class: 'num' }, number(row.rewards[1], 2))))))),
    el('p', { class: 'chart-note' }, '\u25b2 the sign pays: completions with it earn more than the others. Choose a sign to read its groups.'));
}

function taskChip(task) {
  return el('span', { class: 'task', style: { '--color': TASK_COLORS[task] || 'var(--neutral)' } }, words(task));
}

function beforeAfter({ evaluation: { steps, series } }) {
  const title = 'Before and after';
  if (!steps.length) return section('eval', title, 'No held-out evaluation was recorded (evaluation.data is empty, or none has run yet).');
  const names = Object.keys(series);
  const last = steps.length - 1;
  const cell = (value, digits) => el('td', { class: 'num' }, number(value, digits));
  const lead = last === 0 ? `Held-out metrics, measured once so far, at step ${steps[0]}.`
    : `Held-out metrics at step ${steps[0]} and step ${steps[last]}. Both use the same prompts and the same sampling seeds.`;
  const tasks = [...TASKS, ''].map((task) => [task, names.filter((name) => task
    ? name.startsWith(`eval/${task}/`) : !TASKS.some((other) => name.startsWith(`eval/${other}/`)))]);
  return section('eval', title, lead, el('div', { class: 'card scroll narrow', tabindex: 0, role: 'region', 'aria-label': title }, el('table', {},
    el('thead', {}, el('tr', {}, ['Metric', 'Before', last ? 'After' : null, last ? 'Change' : null].filter(Boolean)
      .map((name, i) => el('th', { scope: 'col', class: i ? 'num' : null }, name)))),
    tasks.filter(([, own]) => own.length).map(([task, own]) => el('tbody', {}, own.map((name) => {
      const [before, after] = [series[name][0], series[name][last]];
      const change = before === null || after === null ? null : after - before;
      const good = change === null || !task || name.endsWith('self_score') ? '' : change > 0.005 ? ' up' : change < -0.005 ? ' down' : '';
      return el('tr', {}, el('th', { scope: 'row' }, task ? taskChip(task) : null, ' ', words(name.slice(5 + (task ? task.length + 1 : 0)))),
        cell(before), last ? cell(after) : null, last ? el('td', { class: 'num' + good }, signed(change)) : null);
    }))))));
}

function learning(data) {
  const { steps, series, per_point: perPoint } = data.training;
  const title = 'Learning curves';
  if (!steps.length) return section('curves', title, 'No training step yet.');
  const marks = data.run.phase_starts.map((phase) => ({ x: phase.step, label: words(phase.label) }));
  const scale = { reasoning: '0 or 1', preference: 'Kendall\u2019s tau, \u22121 to 1', instruction: 'self-score' };
  // Each task has its own scale, so each has its own chart.
  const reward = (task) => chart({ title: `Reward: ${task}, ${scale[task]}`, marks, series: [
    { label: 'mean', color: TASK_COLORS[task], xs: steps, ys: series[`reward/mean/${task}`] || [] },
    { label: 'spread within a group', color: 'var(--neutral)', dash: '7 3', xs: steps, ys: series[`reward/std/${task}`] || [] }] });
  const byTask = (area, name, note) => chart({ title: name, note, series: TASKS.map((task) => ({
    label: task, color: TASK_COLORS[task], dash: TASK_DASHES[task], xs: steps, ys: series[`${area}/${task}`] || [] })) });
  // Measured every few steps: drawn through what was measured, without holes between.
  const sparse = (area, name, note) => chart({ title: name, note, series: TASKS.map((task) => {
    const ys = series[`${area}/${task}`] || [];
    const measured = ys.map((_, i) => i).filter((i) => ys[i] !== null);
    return { label: task, color: TASK_COLORS[task], dash: TASK_DASHES[task], xs: measured.map((i) => steps[i]), ys: measured.map((i) => ys[i]) };
  }) });
  const one = (metric, name, note) => chart({ title: name, note, series: [{ label: words(metric.split('/').at(-1)), color: 'var(--c1)', xs: steps, ys: series[metric] || [] }] });
  return section('curves', title, (perPoint > 1 ? `A point is the mean of ${perPoint} steps. ` : '') +
    (steps.length >= SMOOTH_FROM ? 'Thin: single steps; bold: running mean. ' : '') + 'Point at a curve, or focus it and use the arrow keys, to read a step. A group without reward spread has no advantage and teaches nothing.',
  el('div', { class: 'grid' },
    TASKS.map(reward),
    byTask('completions/length_mean', 'Mean completion length, tokens'),
    byTask('completions/truncated_fraction', 'Share cut off by the length limit'),
    byTask('loss/share', 'Share of the objective, by |advantage|'),
    sparse('policy/grad_norm', 'Gradient norm of each task\u2019s part'),
    one('policy/entropy', 'Policy entropy'), one('policy/clip_fraction', 'Clip fraction'),
    one('policy/grad_norm', 'Gradient norm, before clipping'), one('mismatch/kl', 'Mismatch of engine and trainer (KL)'),
    one('policy/kl_old', 'Drift during the update (KL)'), one('policy/loss', 'Loss'), one('policy/lr', 'Learning rate')));
}

function heldOut(data) {
  const { steps, series } = data.evaluation;
  if (steps.length < 2) return null;
  const draw = (title, names, color) => chart({ title, series: names.filter((name) => series[name]).map((name, i) => ({
    label: words(name.split('/').at(-1)), color: i ? PALETTE[i] : color, dash: [null, '7 3', '2 3'][i], xs: steps, ys: series[name] })) });
  const at = (task, ...names) => names.map((name) => `eval/${task}/${name}`);
  return section('heldout', 'Held-out curves', null, el('div', { class: 'grid' },
    draw('Reasoning accuracy', at('reasoning', 'accuracy', 'greedy_accuracy'), TASK_COLORS.reasoning),
    draw('Preference: Kendall\u2019s tau', at('preference', 'tau', 'greedy_tau'), TASK_COLORS.preference),
    draw('Instruction: outside quality', at('instruction', 'quality', 'greedy_quality'), TASK_COLORS.instruction),
    draw('Instruction: self-score', at('instruction', 'self_score'), TASK_COLORS.instruction),
    draw('Self-scores agree with quality (tau)', at('instruction', 'self_score_tau'), TASK_COLORS.instruction),
    draw('Readable verdicts', ['eval/preference/verdict_ok_fraction'], TASK_COLORS.preference),
    draw('Instruction groups with a verdict', at('instruction', 'verdict_ok_fraction'), TASK_COLORS.instruction)));
}

// Shares of counts that stand below `prefix`, one layer a name; `of` is a metric, or nothing for their own sum.
function shares(data, title, prefix, totals, of, color) {
  const { steps, series } = data.training;
  const names = Object.keys(totals).sort((a, b) => totals[b] - totals[a]);
  if (!names.length) return null;
  const whole = steps.map((_, i) => (of ? series[of]?.[i] : names.reduce((sum, name) => sum + (series[prefix + name]?.[i] || 0), 0)));
  return chart({ title, stacked: true, format: (value) => (value === null ? '\u2013' : percent(value)), series: names.map((name, i) => ({
    label: words(name), color: color(name, i), xs: steps, ys: steps.map((_, k) => (whole[k] ? (series[prefix + name]?.[k] || 0) / whole[k] : null)) })) });
}

function totalsTable(caption, totals, whole) {
  const names = Object.keys(totals).sort((a, b) => totals[b] - totals[a]);
  return el('div', { class: 'card' }, el('h3', {}, caption), el('table', {}, el('tbody', {}, names.map((name) => el('tr', {},
    el('th', { scope: 'row' }, words(name)), el('td', { class: 'num' }, number(totals[name])),
    el('td', { class: 'num' }, whole ? percent(totals[name] / whole) : ''),
    el('td', { class: 'bar-cell' }, el('span', { class: 'bar', style: { width: (whole ? (100 * totals[name]) / whole : 0) + '%' } })))))));
}

function referee(data) {
  const { steps, series } = data.training;
  const asked = Object.values(data.verdicts).reduce((sum, value) => sum + value, 0);
  if (!asked) return section('referee', 'Referee', 'The referee was not asked yet.');
  const one = (metric, title, note) => chart({ title, note, zero: true, series: [{ label: words(metric.split('/').at(-1)), color: 'var(--c2)', xs: steps, ys: series[metric] || [] }] });
  return section('referee', 'Referee', 'Every verdict counts here: those that are trained on (preference) and those that score the player (instruction), re-asks included.',
    el('div', { class: 'grid' },
      shares(data, 'Verdict outcomes, share of asks', 'referee/verdict/', data.verdicts, null, (name, i) => (name === 'ok' ? 'var(--good)' : PALETTE[i % PALETTE.length])),
      totalsTable('Verdicts of the whole run', data.verdicts, asked),
      one('referee/position_bias', 'Position bias', 'Correlation of score and place in the scoring prompt: 0 is fair, +1 favours the last, \u22121 the first.'),
      one('referee/length_correlation', 'Length correlation', 'Correlation of score and number of characters. Longer may be better; its growth is a warning.'),
      one('referee/vote_agreement', 'Agreement of votes (tau)'),
      one('referee/reasks', 'Groups asked again')));
}

function drops(data) {
  const { drops: totals, num_groups: whole } = data;
  const dropped = Object.values(totals).reduce((sum, value) => sum + value, 0);
  if (!dropped) return section('drops', 'Dropped groups', data.num_groups ? 'No group was dropped.' : 'No group yet.');
  return section('drops', 'Dropped groups', `${count(dropped, 'group')} of ${number(whole)} (${percent(dropped / whole)}) were not trained on. ` +
    'A dropped group counts in no loss and no denominator.', el('div', { class: 'grid' },
    shares(data, 'Dropped by cause, share of groups', 'groups/dropped/', totals, 'groups/total', (_, i) => PALETTE[i % PALETTE.length]),
    totalsTable('Dropped in the whole run', totals, whole)));
}
