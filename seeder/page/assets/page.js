// The seeder's page in the browser. It follows /page/events: a "view" is all there is, a "delta" what has
// changed since the event before it. Whatever comes from there is put on the page as text and never as
// markup: names are made by strangers.

const $ = id => document.getElementById(id);

// ---- what the seeder has told --------------------------------------------------------------------------

const tables = ['swarms', 'hosts', 'jobs', 'fallbacks'];
let state = null; // {seq, names, now, history: {fleet, registry}, and a Map of each table by id}

function take(event, data) {
	if (event === 'view') {
		state = {seq: data.seq, names: data.names, now: data.now, history: data.history};
		for (const t of tables) state[t] = new Map();
		map.clear();
	} else if (event === 'delta') {
		if (!state || data.seq !== state.seq + 1) throw new Error('an event is missing');
		state.seq = data.seq;
		Object.assign(state.now, data.now);
		push(state.history.fleet, state.now.fleet_rate);
		push(state.history.registry, state.now.registry_rate);
	} else {
		return;
	}
	for (const t of tables) merge(state[t], data[t]);
	map.touch(data.hosts);
	draw();
}

function push(history, rate) {
	history.push(rate);
	if (history.length > 180) history.shift();
}

// merge takes rows of which only what has changed is there.
function merge(rows, change) {
	if (!change) return;
	for (const row of change.set) {
		const known = rows.get(row.id);
		if (known) Object.assign(known, row);
		else rows.set(row.id, row);
	}
	for (const id of change.gone ?? []) rows.delete(id);
}

// ---- the connection ------------------------------------------------------------------------------------

const silence = 8000; // ms without an event, which come each second, after which the connection is given up
let token = sessionStorage.getItem('token') ?? '';
let connection = null; // an AbortController
let heard = 0, fails = 0, retry = 0;

async function connect() {
	clearTimeout(retry);
	connection?.abort();
	const mine = connection = new AbortController();
	heard = Date.now();
	let why = 'the seeder has closed the connection';
	try {
		const headers = token ? {Authorization: 'Bearer ' + token} : {};
		const answer = await fetch('page/events', {headers, cache: 'no-store', signal: mine.signal});
		if (!answer.ok) throw await refusal(answer);
		await read(answer.body.pipeThrough(new TextDecoderStream()).getReader());
	} catch (err) {
		why = err.refused ?? (err.name === 'SyntaxError' || err instanceof TypeError ? 'the seeder does not answer' : err.message);
	}
	if (mine !== connection) return; // another has taken its place
	mine.abort();
	if (token && ask.refused(why)) return;
	fails++;
	status('lost', fails > 1 ? why + '; trying again' : 'reconnecting');
	retry = setTimeout(connect, Math.min(500 * 2 ** Math.min(fails, 5), 10000) * (0.75 + Math.random() / 2));
}

async function refusal(answer) {
	let text = 'the seeder answers ' + answer.status;
	try { text = (await answer.json()).errors[0].message; } catch { /* not the seeder's own words */ }
	return Object.assign(new Error(text), {refused: text});
}

// read takes events apart as the HTML standard has it ("server-sent events"), as far as the seeder makes use of it.
async function read(reader) {
	for (let rest = ''; ;) {
		const {value, done} = await reader.read();
		if (done) return;
		heard = Date.now();
		const events = (rest + value).split('\n\n');
		rest = events.pop();
		for (const text of events) {
			const field = name => text.split('\n').find(l => l.startsWith(name + ': '))?.slice(name.length + 2) ?? '';
			take(field('event'), JSON.parse(field('data')));
			fails = 0;
			status('live', 'live');
		}
	}
}

function status(kind, text) {
	if (document.body.className !== kind) document.body.className = kind;
	if ($('link').textContent !== text) $('link').textContent = text;
}

setInterval(() => {
	if (Date.now() - heard > silence && connection && !connection.signal.aborted) {
		status('lost', 'not a word from the seeder; trying again');
		connect();
	}
}, 1000);

// A page that nobody sees gives its place to others after a while.
let unseen = 0;
document.addEventListener('visibilitychange', () => {
	clearTimeout(unseen);
	if (document.hidden) {
		unseen = setTimeout(() => { clearTimeout(retry); const c = connection; connection = null; c?.abort(); }, 60000);
	} else if (!connection || connection.signal.aborted) {
		connect();
	}
});

// ---- the right to names --------------------------------------------------------------------------------

const ask = {
	// refused asks for another token where this one was not taken.
	refused(why) {
		if (!why.includes('token')) return false;
		this.keep('');
		$('ask-error').textContent = why;
		if (!$('ask').open) $('ask').showModal();
		connect();
		return true;
	},
	keep(t) {
		token = t;
		if (t) sessionStorage.setItem('token', t);
		else sessionStorage.removeItem('token');
	},
	draw() {
		const [text, button] = $('access').children;
		$('access').hidden = state.names && !token;
		set(text, state.names ? 'Names are shown.' : 'Numbers only: names are for the operator.');
		set(button, state.names ? 'Hide them' : 'Show names');
	},
};

$('access').querySelector('button').addEventListener('click', () => {
	if (state?.names) {
		ask.keep('');
		connect();
		return;
	}
	$('ask-error').textContent = '';
	$('ask').showModal();
});
$('ask').querySelector('[value=cancel]').addEventListener('click', () => $('ask').close());
$('ask').querySelector('form').addEventListener('submit', e => {
	e.preventDefault();
	const input = e.target.elements.token;
	ask.keep(input.value.trim());
	input.value = '';
	$('ask').close();
	connect();
});

// ---- words and figures ---------------------------------------------------------------------------------

const whole = new Intl.NumberFormat('en');
const count = n => whole.format(n ?? 0);

function bytes(n) {
	let unit = 0;
	for (n = n ?? 0; n >= 1000 && unit < 6; unit++) n /= 1024;
	return (unit === 0 || n >= 99.95 ? n.toFixed(0) : n >= 9.995 ? n.toFixed(1) : n.toFixed(2)) + ' ' + ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'][unit];
}

const plural = (n, one, many) => count(n) + ' ' + (n === 1 ? one : many);

// set changes text only where it is another: a page at rest costs nothing.
function set(el, text) {
	if (el.textContent !== text) el.textContent = text;
}

function el(tag, className, ...children) {
	const e = document.createElement(tag);
	if (className) e.className = className;
	e.append(...children);
	return e;
}

// ---- drawing -------------------------------------------------------------------------------------------

let due = false;
function draw() {
	if (due) return;
	due = true;
	requestAnimationFrame(() => {
		due = false;
		drawNow();
		drawChart();
		drawSwarms();
		drawJobs();
		drawFallbacks();
		map.draw();
		drawHosts();
		ask.draw();
	});
}

function drawNow() {
	const n = state.now, saved = Math.max(0, n.fleet - n.registry);
	set($('fleet-rate'), bytes(n.fleet_rate) + '/s');
	set($('fleet'), bytes(n.fleet) + ' in all');
	set($('registry-rate'), bytes(n.registry_rate) + '/s');
	set($('registry'), bytes(n.registry) + ' in all');
	set($('saved'), n.fleet > 0 ? (saved === n.fleet ? '100' : Math.min(99.9, 100 * saved / n.fleet).toFixed(1)) + '%' : '–');
	set($('saved-bytes'), bytes(saved) + ' not sent by the registry');
	set($('hosts'), count(n.hosts));
	const states = `${count(n.ready)} ready, ${count(n.pulling)} pulling` + (n.away ? `, ${count(n.away)} away` : '');
	set($('hosts-states'), states);
	$('zones').ariaLabel = `${plural(n.hosts, 'host', 'hosts')}: ${states}`;
	set($('version'), n.version ?? '');
	const title = n.pulling > 0 ? `${plural(n.pulling, 'host pulls', 'hosts pull')} · murder` : 'murder';
	if (document.title !== title) document.title = title;
}

function drawChart() {
	const {fleet, registry} = state.history;
	const most = Math.max(1024, ...fleet, ...registry), top = 2 ** Math.ceil(Math.log2(most));
	for (const [name, rates] of [['fleet', fleet], ['registry', registry]]) {
		const line = rates.map((r, i) => `${180 - rates.length + i} ${(100 - 98 * r / top).toFixed(1)}`).join('L');
		$(name + '-line').setAttribute('d', line && 'M' + line);
		$(name + '-area').setAttribute('d', line && `M${180 - rates.length} 100L${line}V100Z`);
	}
	set($('chart-top'), bytes(top) + '/s');
	set($('chart-middle'), bytes(top / 2) + '/s');
	set($('chart-text'), `The fleet receives ${bytes(state.now.fleet_rate)} a second, the registry sends ${bytes(state.now.registry_rate)}.`);
}

// list has one child of parent for each of items, made by make and changed by change, or says that there is none.
function list(parent, items, make, change, none) {
	if (items.length === 0) {
		if (parent.firstElementChild?.className !== 'empty') parent.replaceChildren(el('li', 'empty'));
		return set(parent.firstElementChild, none);
	}
	if (parent.firstElementChild?.className === 'empty') parent.replaceChildren();
	while (parent.children.length > items.length) parent.lastElementChild.remove();
	while (parent.children.length < items.length) parent.append(make());
	items.forEach((item, i) => change(parent.children[i], item));
}

// row is a list's child: what, a bar, and how far.
function row(parts) {
	const bar = el('div', 'bar');
	bar.role = 'img';
	for (let i = 0; i < parts; i++) bar.append(el('i'));
	return el('li', '', el('div', '', el('div', 'name'), el('div', 'small')), bar, el('div', 'right', el('div', ''), el('div', 'small')));
}

function fillRow(li, name, below, label, right, rightBelow) {
	const [what, bar, far] = li.children;
	set(what.children[0], name);
	set(what.children[1], below);
	set(far.children[0], right);
	set(far.children[1], rightBelow);
	if (bar.ariaLabel !== label) bar.ariaLabel = label;
	return bar.children;
}

function width(part, share) {
	const w = (100 * share).toFixed(2) + '%';
	if (part.style.width !== w) part.style.width = w;
}

function drawSwarms() {
	const shown = [...state.swarms.values()].sort((a, b) => open(b) - open(a) || b.id - a.id);
	set($('swarms-count'), state.now.swarms > shown.length ? `${count(shown.length)} of ${count(state.now.swarms)}` : count(state.now.swarms));
	list($('swarms'), shown, () => row(11), (li, s) => {
		const hosts = s.hosts ?? 0, have = s.fill?.[10] ?? 0;
		const fetching = s.fetched < 100 ? `the registry has sent ${s.fetched ?? 0}%` : '';
		const parts = fillRow(li,
			s.name || s.digest || `layer ${s.id}`,
			[bytes(s.size), s.name && s.digest, fetching].filter(Boolean).join(' · '),
			`${count(have)} of ${plural(hosts, 'host has', 'hosts have')} all of it, ${s.percent ?? 0} per cent on average`,
			hosts ? `${count(have)} of ${plural(hosts, 'host', 'hosts')}` : 'no host yet', hosts ? `${s.percent ?? 0}%` : '');
		for (let i = 0; i < 11; i++) { // those with all of it stand to the left
			if (!parts[i].className) parts[i].className = 'd' + (10 - i);
			width(parts[i], hosts ? (s.fill?.[10 - i] ?? 0) / hosts : 0);
		}
	}, 'Nothing has been pulled yet. A layer shows here as soon as a host asks for it.');
}

// open is how many hosts lack some of a swarm.
const open = s => (s.hosts ?? 0) - (s.fill?.[10] ?? 0);

function drawJobs() {
	const shown = [...state.jobs.values()].sort((a, b) => (b.state === 'running') - (a.state === 'running') || b.began - a.began || b.id - a.id);
	list($('jobs'), shown, () => row(1), (li, j) => {
		if (li.className !== j.state) li.className = j.state;
		const share = j.want > 0 ? Math.min(1, (j.have ?? 0) / j.want) : j.hosts > 0 ? (j.done ?? 0) / j.hosts : 0;
		const [part] = fillRow(li,
			j.images || `prefetch ${j.id}`,
			[j.whom, 'since ' + new Date(1000 * j.began).toLocaleTimeString(), j.slowest && 'slowest: ' + j.slowest, j.error].filter(Boolean).join(' · '),
			`${Math.floor(100 * share)} per cent`,
			`${count(j.done)} of ${plural(j.hosts ?? 0, 'host', 'hosts')}` + (j.failed ? `, ${count(j.failed)} failed` : ''),
			j.state === 'running' ? `${Math.floor(100 * share)}% of ${bytes(j.want)}` : j.state);
		width(part, share);
	}, 'No prefetch has been ordered. murder prefetch --fleet IMAGE has all hosts fetch an image ahead of a rollout.');
}

// whys say a reason's meaning; docs/FAULTS.md has more.
const whys = {
	__proto__: null, // hosts choose the words
	'seeder unreachable': 'it refused, or was silent for a second',
	'no seeder': 'none is configured',
	'swarm stalled': 'not a byte of the peers for some seconds',
	'too slow': 'less than 16 KiB a second',
	'blob too small for a swarm': 'below 1 MiB the seeder sends a blob itself',
	'answer broke off': 'in mid-blob; the rest came from elsewhere at the same byte',
	'blob came out wrong before': 'so no seeder is asked for it for ten minutes',
	'seeder could not': 'it said so; as a rule its registry failed',
	'cache unusable': 'the disk of the host took nothing, or its bytes had rotted',
};

function drawFallbacks() {
	const shown = [...state.fallbacks.values()].filter(f => f.count > 0).sort((a, b) => b.count - a.count);
	const most = shown[0]?.count;
	list($('fallbacks'), shown, () => row(1), (li, f) => {
		const [part] = fillRow(li, f.id, whys[f.id] ?? '', '', plural(f.count, 'time', 'times'), '');
		width(part, f.count / most);
	}, 'No host has told of a pull that left a better way for a worse one.');
}

// map is a cell for each host, by zones.
const map = {
	cells: new Map(), // by host: its element
	zones: new Map(), // by zone: its element
	touched: new Set(),
	clear() {
		this.cells.clear();
		this.zones.clear();
		this.touched.clear();
		$('zones').replaceChildren();
	},
	touch(change) {
		for (const h of change?.set ?? []) this.touched.add(h.id);
		for (const id of change?.gone ?? []) this.touched.add(id);
	},
	draw() {
		for (const id of this.touched) this.cell(id, state.hosts.get(id));
		for (const [zone, e] of this.zones) {
			const n = e.lastElementChild.children.length;
			if (n === 0) {
				e.remove();
				this.zones.delete(zone);
			} else {
				set(e.firstElementChild.lastElementChild, ` ${count(n)}`);
			}
		}
		this.touched.clear();
	},
	cell(id, h) {
		let c = this.cells.get(id);
		if (!h) {
			c?.remove();
			this.cells.delete(id);
			return;
		}
		if (!c) {
			c = el('i');
			c.host = id;
			this.cells.set(id, c);
		}
		const cells = this.zone(h).lastElementChild;
		if (c.parentNode !== cells) cells.append(c);
		const look = h.state === 'pulling' ? 'd' + Math.min(9, Math.floor((h.percent ?? 0) / 10)) : h.state;
		if (c.className !== look) c.className = look;
	},
	zone(h) {
		const key = h.zone ?? 0;
		let z = this.zones.get(key);
		if (!z) {
			z = el('div', '', el('h3', '', el('bdi'), el('span')), el('div', 'cells'));
			z.zone = key;
			this.zones.set(key, z);
			const after = [...$('zones').children].find(other => other.zone > key);
			$('zones').insertBefore(z, after ?? null);
		}
		set(z.firstElementChild.firstElementChild, zoneName(h) || 'no zone');
		return z;
	},
};
$('zones').addEventListener('pointerover', e => {
	const h = state?.hosts.get(e.target.host);
	if (h) e.target.title = [hostName(h), h.addr, zoneName(h), stateText(h)].filter(Boolean).join('\n');
});

const zoneName = h => h.zone_name || (h.zone ? `zone ${h.zone}` : '');
const hostName = h => h.name || h.addr || `host ${h.id}`;
const stateText = h => h.state === 'pulling' ? `pulling, ${h.percent ?? 0}%` : h.state;

// ---- the table of hosts --------------------------------------------------------------------------------

const byName = new Intl.Collator('en', {numeric: true});
const page = 25;
let shownHosts = page;
const filter = $('filter').elements;

function drawHosts() {
	const text = filter.text.value.trim().toLowerCase(), wanted = filter.state.value;
	const rank = {pulling: 0, away: 1, ready: 2};
	const hosts = [...state.hosts.values()].filter(h =>
		(!wanted || h.state === wanted) && (!text || `${hostName(h)} ${h.addr ?? ''} ${zoneName(h)}`.toLowerCase().includes(text)));
	hosts.sort((a, b) => rank[a.state] - rank[b.state] || (a.percent ?? 0) - (b.percent ?? 0) || byName.compare(hostName(a), hostName(b)));
	const all = state.now.hosts, listed = state.hosts.size;
	set($('hosts-count'), all > listed ? `${count(listed)} of ${count(all)}` : count(all));
	const rows = $('host-rows'), shown = hosts.slice(0, shownHosts);
	while (rows.children.length > shown.length) rows.lastElementChild.remove();
	while (rows.children.length < shown.length) {
		rows.append(el('tr', '', el('td', '', el('div'), el('div', 'small')), el('td', 'wide'), el('td'), el('td', 'number'), el('td', 'number wide')));
	}
	shown.forEach((h, i) => {
		const [who, zone, is, lacks, layers] = rows.children[i].children;
		set(who.children[0], hostName(h));
		set(who.children[1], h.name && h.addr ? h.addr : '');
		set(zone, zoneName(h) || '–');
		set(is, stateText(h));
		set(lacks, h.left ? bytes(h.left) : '–');
		set(layers, count(h.whole));
	});
	$('host-rows').parentElement.hidden = $('filter').hidden = state.hosts.size === 0;
	$('no-hosts').hidden = state.hosts.size > 0;
	$('more').hidden = hosts.length <= shown.length;
	set($('more'), `Show more of ${count(hosts.length)}`);
}

$('more').addEventListener('click', () => { shownHosts += 200; draw(); });
$('filter').addEventListener('input', () => { shownHosts = page; if (state) draw(); });
$('filter').addEventListener('submit', e => e.preventDefault());

connect();
