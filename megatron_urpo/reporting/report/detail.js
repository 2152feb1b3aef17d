// One group in full: prompt, answers, what was shown to the referee in which order, its words, and what came of them.

function detail(group, data, close) {
  const heading = el('h3', { tabindex: -1 }, `Step ${group.step}, group ${group.group}`);
  return el('article', { class: 'detail', 'aria-label': `Step ${group.step}, group ${group.group}` },
    el('header', {}, heading, taskChip(group.task), outcomeChip(group.dropped || 'trained on', !group.dropped),
      el('button', { type: 'button', class: 'close', onclick: close, 'aria-label': 'Close the group' }, '\u00d7')),
    el('p', { class: 'meta' }, shown(group.id), group.source ? [' from ', shown(group.source)] : null,
      `; transcripts/step_${String(group.step).padStart(6, '0')}.jsonl`),
    flagList(group.flags, data),
    group.messages.map((message) => block(message.role === 'user' ? 'Prompt' : message.role, message)),
    group.tests ? block('Tests of the program', group.tests) : null,
    group.answers && group.answers.length ? el('p', { class: 'meta' }, 'Accepted: ', group.answers.map((answer, i) => [i ? ' or ' : null, el('code', {}, shown(answer))])) : null,
    group.task === 'preference' ? candidates(group) : null,
    el('h4', {}, group.task === 'preference' ? 'Verdicts, each a completion with a reward' : 'Completions, best reward first'),
    group.completions.length ? byReward(group).map((index) => completion(group, index, data))
      : el('p', { class: 'meta' }, 'None: the prompt was dropped before anything was generated.'),
    group.task !== 'preference' && group.judgements.length ? [el('h4', {}, 'What the referee said'),
      group.judgements.map((judgement, i) => verdict(group, judgement, i))] : null);
}

function byReward(group) {
  const rewards = group.completions.map((one) => one.reward ?? -Infinity);
  return rewards.map((_, i) => i).sort((a, b) => (rewards[b] > rewards[a] ? 1 : rewards[b] < rewards[a] ? -1 : a - b));
}

function completion(group, index, data) {
  const one = group.completions[index];
  const judgement = group.task === 'preference' ? group.judgements[index] : null;
  return el('div', { class: 'completion' },
    el('div', { class: 'completion-head' },
      el('b', { class: 'number' }, '#' + (index + 1)), measure('reward', number(one.reward, 2), one.reward),
      measure('advantage', signed(one.advantage, 2), one.advantage),
      outcomeChip(one.outcome, ['correct', 'ok', 'scored'].includes(one.outcome)),
      el('span', { class: 'meta' }, count(one.tokens, 'token') + (one.finish === 'stop' ? '' : ', ended by ' + words(one.finish)))),
    flagList(one.flags, data), text(one),
    judgement && judgement.scores.length ? el('p', { class: 'meta' }, 'Read as ', judgement.scores.map((score, i) =>
      el('span', { class: 'pair' }, `#${i + 1} `, el('b', {}, number(score, 2))))) : null);
}

function measure(name, shownValue, value) {
  const tone = name === 'advantage' && value ? (value > 0 ? ' up' : ' down') : '';
  return el('span', { class: 'measure' }, name + ' ', el('b', { class: tone.trim() || null }, shownValue));
}

function candidates(group) {
  const judgement = group.judgements[0];
  const best = Math.max(...group.gold);
  return [el('h4', {}, 'Candidate responses'), group.responses.map((response, i) => el('div', { class: 'completion' },
    el('div', { class: 'completion-head' }, el('b', { class: 'number' }, '#' + (i + 1)),
      measure('known quality', number(group.gold[i], 3), group.gold[i]), group.gold[i] === best ? el('span', { class: 'chip good' }, 'best') : null,
      judgement ? el('span', { class: 'meta' }, `shown as response ${judgement.permutation.indexOf(i) + 1}`) : null), text(response)))];
}

// Of an instruction group: position p of the scoring prompt showed completion permutation[p].
function verdict(group, judgement, index) {
  const { permutation, scores } = judgement;
  const cells = permutation.map((who, place) => el('tr', {},
    el('th', { scope: 'row' }, place + 1), el('td', {}, '#' + (who + 1)),
    el('td', { class: 'num' }, scores.length ? number(scores[who], 2) : '\u2013')));
  return el('div', { class: 'completion' },
    el('div', { class: 'completion-head' }, el('b', { class: 'number' }, `Ask ${index + 1}`), outcomeChip(judgement.outcome, judgement.outcome === 'ok'),
      el('span', { class: 'meta' }, count(judgement.tokens, 'token') + (judgement.cut_responses ? `, ${count(judgement.cut_responses, 'response')} shortened to fit` : ''))),
    text(judgement),
    el('div', { class: 'order scroll' }, el('table', {},
      el('caption', {}, 'Order in the scoring prompt'),
      el('thead', {}, el('tr', {}, ['Response', 'is', 'Score'].map((name, i) => el('th', { scope: 'col', class: i === 2 ? 'num' : null }, name)))),
      el('tbody', {}, cells))));
}

function block(title, holder) {
  return el('div', { class: 'completion' }, el('div', { class: 'completion-head' }, el('b', { class: 'number' }, words(title))), text(holder));
}

function text(holder) {
  if (!holder.text) return el('p', { class: 'text empty' }, 'empty');
  const head = holder.cut ? holder.text.slice(0, holder.at) : holder.text;
  return el('pre', { class: 'text', dir: 'auto', tabindex: holder.text.length > 800 ? 0 : null }, shown(head),
    holder.cut ? [el('span', { class: 'cut' }, `${number(holder.cut)} characters left out; the transcript file has them`), shown(holder.text.slice(holder.at))] : null);
}

function outcomeChip(outcome, good) {
  return el('span', { class: good ? 'chip good' : 'chip bad' }, words(outcome));
}

function flagList(flags, data) {
  return flags.length ? el('p', { class: 'flags' }, flags.map((flag) =>
    el('span', { class: 'chip flag', title: data.flags[flag]?.meaning }, flag))) : null;
}
