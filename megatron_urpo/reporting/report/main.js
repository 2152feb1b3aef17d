// Reads the data and puts the page together.

const data = JSON.parse(document.getElementById('data').textContent);
const browser = groupBrowser(data);
const sections = [
  lookFirst(data, browser), beforeAfter(data), learning(data), heldOut(data), referee(data), drops(data), timeSection(data), browser.node, about(data),
].filter(Boolean);

document.title = plain(data.run.name) + ' \u2013 run report';
document.getElementById('top').append(...header(data).filter(Boolean));
document.getElementById('main').append(...sections);
document.getElementById('nav').append(...sections.map((node) =>
  el('a', { href: '#' + node.id }, node.querySelector('h2').textContent)));

// The section that is being read is marked in the navigation.
const links = new Map([...document.querySelectorAll('#nav a')].map((link) => [link.hash.slice(1), link]));
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) links.get(entry.target.id)?.toggleAttribute('data-here', entry.isIntersecting);
}, { rootMargin: '-30% 0px -65% 0px' });
for (const node of sections) watcher.observe(node);

function about({ run, flags, training }) {
  return section('about', 'About this page', null,
    el('details', {}, el('summary', {}, 'Signs and how suspicion is counted'),
      el('p', {}, 'A sign proves nothing. The suspicion of a group is the highest, over its completions, of the weight of all signs times the place of the reward in its range: a flagged text that earned nothing is not suspicious, one that earned the most is.'),
      el('dl', { class: 'terms' }, Object.entries(flags).map(([name, { weight, meaning }]) => [el('dt', {}, name, ' ', el('small', {}, number(weight, 1))), el('dd', {}, meaning)]))),
    el('details', {}, el('summary', {}, 'Configuration of the run'), run.config ? el('pre', { class: 'text tall', tabindex: 0 }, shown(run.config)) : el('p', {}, 'config.yaml is missing.')),
    el('details', {}, el('summary', {}, 'Where it ran'), el('pre', { class: 'text tall', tabindex: 0 }, shown(JSON.stringify(run.environment, null, 2)))),
    el('p', { class: 'chart-note' }, `Every number comes from metrics.jsonl (${count(training.steps.length, 'point')} a curve) and transcripts/. The page loads nothing and sends nothing. ` +
      'Characters that cannot be seen, or that would turn text around, are written out: ', shown('\u202e'), '.'));
}
