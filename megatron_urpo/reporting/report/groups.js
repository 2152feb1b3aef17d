// The browser of groups: filter, sort, choose one, read it. On a wide screen the group stands beside the list, on a
// narrow one below its row.

const PAGE_SIZE = 40;
const SORTS = {
  suspicious: ['Most suspicious first', (row) => -row.group.suspicion],
  newest: ['Newest step first', (row) => -row.group.step],
  oldest: ['Oldest step first', (row) => row.group.step],
  top: ['Highest reward first', (row) => -(row.high ?? -Infinity)],
  low: ['Lowest mean reward first', (row) => row.mean ?? Infinity],
  spread: ['Widest reward spread first', (row) => -(row.spread ?? -1)],
  narrow: ['Narrowest reward spread first', (row) => row.spread ?? Infinity],
  long: ['Longest completion first', (row) => -row.longest],
};

function groupBrowser(data) {
  const rows = data.sample.groups.map(describe);
  const fields = filterFields(data, rows, () => { limit = PAGE_SIZE; refresh(); });
  const list = el('ol', { class: 'rows', 'aria-label': 'Groups' });
  const counted = el('p', { class: 'counted', role: 'status' });
  const more = el('button', { type: 'button', class: 'more', onclick: () => { limit += PAGE_SIZE; refresh(); } });
  const pane = el('div', { class: 'pane' }, el('p', { class: 'calm' }, 'Choose a group to read it in full. Arrow keys move through the list.'));
  const wide = matchMedia('(min-width: 1000px)');
  let limit = PAGE_SIZE;
  let opened = null;
  let found = rows;

  function refresh() {
    const wanted = fields.read();
    const order = SORTS[wanted.sort][1];
    found = rows.filter((row) => matches(row, wanted));
    const keys = new Map(found.map((row) => [row, order(row)]));
    found.sort((a, b) => (keys.get(a) < keys.get(b) ? -1 : keys.get(a) > keys.get(b) ? 1
      : b.group.step - a.group.step || a.group.group - b.group.group));
    counted.textContent = `${number(found.length)} of ${count(rows.length, 'group')}`;
    replace(list, found.slice(0, limit).map((row) => listed(row, data, row.group === opened, toggle)));
    more.hidden = found.length <= limit;
    more.textContent = `Show ${Math.min(PAGE_SIZE, found.length - limit)} more`;
    place();
  }
  function place() {
    const shownGroup = opened ? detail(opened, data, close) : null;
    list.querySelector('.inline')?.remove();
    const row = list.querySelector('[aria-expanded="true"]');
    if (shownGroup && !wide.matches && row) row.parentElement.append(el('div', { class: 'inline' }, shownGroup));
    else if (shownGroup) replace(pane, shownGroup);
    else replace(pane, el('p', { class: 'calm' }, 'Choose a group to read it in full. Arrow keys move through the list.'));
    pane.hidden = !wide.matches && (!opened || Boolean(row));
    pane.scrollTop = 0;
  }
  function toggle(group) {
    opened = opened === group ? null : group;
    history.replaceState(null, '', opened ? `#group-${opened.step}-${opened.group}` : '#groups');
    for (const button of list.querySelectorAll('.row')) {
      button.setAttribute('aria-expanded', String(opened !== null && button.dataset.key === key(opened)));
    }
    place();
  }
  function close() {
    const from = opened;
    toggle(opened);
    list.querySelector(`[data-key="${key(from)}"]`)?.focus();
  }
  list.addEventListener('keydown', (event) => {
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const buttons = [...list.querySelectorAll('.row')];
    const at = buttons.indexOf(event.target);
    if (event.key === 'Escape' && opened) close();
    if (!move || at < 0 || !buttons[at + move]) return;
    event.preventDefault();
    buttons[at + move].focus();
    if (opened && wide.matches) toggle(found[at + move].group);
  });
  wide.addEventListener('change', place);

  const sample = data.sample;
  const node = section('groups', 'Groups', sampleRule(data),
    rows.length ? [fields.node, el('div', { class: 'browser' }, el('div', { class: 'list' }, counted, list, more), pane)] : null);
  const browser = {
    node,
    filter(wanted) { fields.write(wanted); limit = PAGE_SIZE; refresh(); node.scrollIntoView(); },
    open(group) {
      fields.write({});
      limit = Math.max(PAGE_SIZE, rows.length && sample.groups.length);
      opened = null;
      fields.write({ fromStep: group.step, toStep: group.step });
      refresh();
      toggle(group);
      (wide.matches ? node : list.querySelector(`[data-key="${key(group)}"]`)).scrollIntoView();
    },
  };
  if (rows.length) refresh();
  const linked = location.hash.match(/^#group-(\d+)-(\d+)$/);
  const target = linked && sample.groups.find((group) => group.step === Number(linked[1]) && group.group === Number(linked[2]));
  if (target) requestAnimationFrame(() => browser.open(target));
  return browser;
}

function key(group) {
  return group.step + '-' + group.group;
}

function describe(group) {
  const rewards = group.completions.map((one) => one.reward).filter((reward) => reward !== null);
  const texts = [...group.messages, ...(group.responses || []), ...group.completions, ...group.judgements].map((one) => one.text);
  return {
    group, rewards, mean: mean(rewards), high: rewards.length ? Math.max(...rewards) : null,
    spread: rewards.length ? Math.max(...rewards) - Math.min(...rewards) : null,
    longest: Math.max(0, ...group.completions.map((one) => one.tokens)),
    flags: new Set([...group.flags, ...group.completions.flatMap((one) => one.flags)]),
    outcomes: new Set([...group.completions.map((one) => one.outcome), ...group.judgements.map((one) => one.outcome)]),
    search: [group.id, group.source, ...(group.answers || []), ...texts].join('\n').toLowerCase(),
  };
}

function matches(row, wanted) {
  const { group } = row;
  if (wanted.task && group.task !== wanted.task) return false;
  if (wanted.fromStep !== null && group.step < wanted.fromStep) return false;
  if (wanted.toStep !== null && group.step > wanted.toStep) return false;
  const [kind, name] = [wanted.outcome.slice(0, 2), wanted.outcome.slice(2)];
  if (kind === 't:' && group.dropped) return false;
  if (kind === 'a:' && !group.dropped) return false;
  if (kind === 'd:' && group.dropped !== name) return false;
  if (kind === 'o:' && !row.outcomes.has(name)) return false;
  if (wanted.flag === 'any' ? !row.flags.size : wanted.flag && !row.flags.has(wanted.flag)) return false;
  const ranged = wanted.low !== null || wanted.high !== null;
  if (ranged && !row.rewards.some((reward) => reward >= (wanted.low ?? -Infinity) && reward <= (wanted.high ?? Infinity))) return false;
  return !wanted.text || row.search.includes(wanted.text);
}

function listed(row, data, isOpen, toggle) {
  const { group } = row;
  const question = plain(group.messages.at(-1)?.text.slice(0, 160) || '').replace(/\s+/g, ' ');
  return el('li', {}, el('button', {
    type: 'button', class: 'row', 'aria-expanded': String(isOpen), 'data-key': key(group), onclick: () => toggle(group) },
  el('span', { class: 'row-head' }, el('span', { class: 'where' }, `step ${group.step} \u00b7 ${group.group}`), taskChip(group.task),
    group.dropped ? outcomeChip(group.dropped, false) : null, strip(row, data)),
  el('span', { class: 'question', dir: 'auto' }, question || 'empty prompt'),
  row.flags.size ? el('span', { class: 'flags' }, [...row.flags].map((flag) => el('span', { class: 'chip flag' }, flag))) : null));
}

// The rewards of a group as dots on its task's scale, so that spread and outliers show at a glance.
function strip(row, data) {
  if (!row.rewards.length) return el('span', { class: 'strip-text' }, 'no reward');
  const [low, high] = { reasoning: [0, 1], preference: [-1, 1] }[row.group.task] || data.sample.self_score_range;
  const x = (reward) => 5 + 70 * Math.min(1, Math.max(0, (reward - low) / (high - low || 1)));
  return el('span', { class: 'strip-text' }, number(row.mean, 2),
    svg('svg', { class: 'strip', width: 80, height: 14, role: 'img', 'aria-label': `rewards ${row.rewards.map((value) => number(value, 2)).join(', ')}` },
      svg('line', { x1: 5, x2: 75, y1: 7, y2: 7 }), row.rewards.map((reward) => svg('circle', { cx: x(reward), cy: 7, r: 4 }))));
}
