// What a person sees of the seeder's page, in headless Chromium. page_test.go starts this with a fake seeder, and
// reads a line of JSON for each check: {"name", "error", "seconds"}.
import {chromium} from 'playwright-core';
import assert from 'node:assert/strict';
import {mkdir} from 'node:fs/promises';

const {PAGE_URL: url, PAGE_CONTROL: control, PAGE_TOKEN: token, PAGE_SHOTS: shots, PAGE_CHROMIUM: executablePath} = process.env;
const patience = 20000; // ms, for what must come: no test waits for what must not

await mkdir(shots, {recursive: true});
// Chromium's own sandbox does not work for root, and there is nothing but our own page in it.
const browser = await chromium.launch({executablePath, args: ['--no-sandbox', '--disable-dev-shm-usage']});

async function order(what) {
	const answer = await fetch(control + what);
	assert.ok(answer.ok, `${what}: ${await answer.text()}`);
}

// look opens the page as a viewer who has the token, or has not, and fails at the end if anything went wrong in it.
async function look({as = '', wait = '.live', allow = /^$/, ...options} = {}, does) {
	const context = await browser.newContext({viewport: {width: 1200, height: 900}, colorScheme: 'light', ...options});
	try {
		const page = await context.newPage();
		page.setDefaultTimeout(patience);
		const wrong = [];
		page.on('console', m => { if (['error', 'warning'].includes(m.type()) && !allow.test(m.text())) wrong.push(m.text()); });
		page.on('pageerror', e => wrong.push(String(e)));
		const asked = [];
		page.on('request', r => asked.push(r.url()));
		if (as) await context.addInitScript(t => sessionStorage.setItem('token', t), as);
		await page.goto(url);
		if (wait) await page.waitForSelector(wait);
		await does(page);
		assert.deepEqual(wrong, [], 'errors in the console');
		assert.deepEqual(asked.filter(u => !u.startsWith(url) && !u.startsWith('data:')), [], 'asked of others');
	} finally {
		await context.close();
	}
}

// until waits for the text of an element to be as wanted.
const until = (page, selector, wanted) => page.waitForFunction(
	([s, w]) => document.querySelector(s)?.textContent.match(new RegExp(w)), [selector, wanted.source]);
const shot = (page, name, fullPage = true) => page.screenshot({path: `${shots}/${name}.png`, fullPage});
const text = (page, selector) => page.locator(selector).first().textContent();
// sideways is how many pixels wider than its window the page is.
const sideways = page => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);

const checks = {
	async 'an idle seeder says that there is nothing'() {
		await order('/set?idle');
		await look({}, async page => {
			await until(page, '#swarms', /Nothing has been pulled yet/);
			await until(page, '#jobs', /No prefetch has been ordered/);
			assert.equal(await text(page, '#saved'), '–');
			await shot(page, 'idle');
		});
	},

	async 'the page follows the fleet'() {
		await order('/set?hosts=12&step=10');
		await look({as: token}, async page => {
			await until(page, '#hosts-states', /^0 ready, 12 pulling$/);
			assert.match(await text(page, '#swarms'), /registry\.example\/shop\/checkout/);
			const before = await text(page, '#swarms .right');
			await order('/set?hosts=12&step=70');
			await page.waitForFunction(was => document.querySelector('#swarms .right').textContent !== was, before);
			await order('/set?hosts=12&step=100');
			await until(page, '#hosts-states', /^12 ready, 0 pulling$/);
			await until(page, '#swarms .right', /^12 of 12 hosts/);
			await until(page, '#jobs', /done$/);
			await until(page, '#fallbacks', /seeder unreachable.*33 times/);
			await order('/set?hosts=9&step=100');
			await until(page, '#hosts', /^9$/);
			await page.waitForFunction(() => document.querySelectorAll('.cells i').length === 9);
		});
	},

	async 'two thousand hosts'() {
		await order('/set?hosts=2000&step=50');
		await look({as: token}, async page => {
			await until(page, '#hosts', /^2,000$/);
			await page.waitForFunction(() => document.querySelectorAll('.cells i').length === 2000);
			assert.equal(await page.locator('#host-rows tr').count(), 25);
			await page.getByRole('searchbox').fill('node-1777');
			await until(page, '#host-rows', /^node-1777\.prod\.example/);
			assert.equal(await page.locator('#host-rows tr').count(), 1);
			await page.getByRole('searchbox').fill('');
			await page.getByRole('combobox').selectOption('away');
			await until(page, '#host-rows', /away/);
			assert.equal(await page.locator('#host-rows tr').count(), 3);
			await page.getByRole('combobox').selectOption('');
			await shot(page, 'two-thousand-hosts');
		});
	},

	async 'in the dark'() {
		await order('/set?hosts=2000&step=50');
		await look({as: token, colorScheme: 'dark'}, async page => {
			await until(page, '#hosts', /^2,000$/);
			const [ink, paper] = await page.evaluate(() => {
				const light = c => c.match(/\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 3;
				const s = getComputedStyle(document.body);
				return [light(s.color), light(s.backgroundColor)];
			});
			assert.ok(paper < 50 && ink > 200, `ink ${ink} on paper ${paper}`);
			await shot(page, 'dark');
		});
	},

	async 'on a phone'() {
		await order('/set?hosts=2000&step=50&hostile');
		await look({as: token, viewport: {width: 360, height: 740}, isMobile: true, hasTouch: true}, async page => {
			await until(page, '#hosts', /^2,000$/);
			assert.equal(await sideways(page), 0, 'scrolls sideways with long names');
			await order('/set?hosts=2000&step=50');
			await until(page, '#swarms .name', /^registry\.example/);
			assert.equal(await sideways(page), 0, 'scrolls sideways');
			const small = await page.evaluate(() => [...document.querySelectorAll('main *')].filter(e =>
				e.children.length === 0 && e.textContent && parseFloat(getComputedStyle(e).fontSize) < 11).length);
			assert.equal(small, 0, 'texts too small to read');
			await shot(page, 'phone');
		});
		await look({as: token, viewport: {width: 360, height: 740}, deviceScaleFactor: 2, isMobile: true, colorScheme: 'dark'}, async page => {
			await until(page, '#hosts', /^2,000$/);
			await shot(page, 'phone-dark', false);
		});
	},

	async 'hostile names are text'() {
		await order('/set?hosts=40&step=50&hostile');
		await look({as: token}, async page => {
			await until(page, '#swarms', /<img src=x onerror=/);
			await until(page, '#jobs', /<img src=x/);
			await until(page, '#zones', /<script>window/);
			await page.hover('.cells i');
			assert.equal(await page.evaluate(() => window.harmed), undefined, 'a name was run');
			assert.equal(await page.locator('img, script:not([src]), main svg:not([role=img])').count(), 0, 'a name became markup');
			const all = await page.evaluate(() => document.body.textContent);
			assert.ok(!/[\u0000-\u0008\u001b\u202e\u2066]/.test(all), 'control characters are shown');
			assert.ok(!/\p{M}{3}/u.test(all), 'marks pile up over other lines');
			await until(page, '#fallbacks', /constructor7 times/);
			assert.equal(await sideways(page), 0, 'a long name scrolls sideways');
			await shot(page, 'hostile-names');
		});
	},

	async 'without the right there are no names'() {
		await order('/set?hosts=2000&step=50');
		await look({}, async page => {
			await until(page, '#hosts', /^2,000$/);
			await until(page, '#access', /Numbers only/);
			await until(page, '#swarms .name', /^layer \d/);
			await page.hover('.cells i');
			const seen = await page.evaluate(() => document.documentElement.outerHTML);
			for (const name of ['registry.example', 'checkout', 'sha256:', 'node-0', 'eu-central', '10.0.0']) {
				assert.ok(!seen.includes(name), `${name} is shown`);
			}
			await shot(page, 'numbers-only');
		});
	},

	async 'a token shows the names, and can be taken back'() {
		await order('/set?hosts=12&step=50');
		await look({allow: /401/}, async page => {
			await page.getByRole('button', {name: 'Show names'}).first().click();
			await page.getByLabel('Token').fill('not the right one');
			await page.getByRole('dialog').getByRole('button', {name: 'Show names'}).click();
			await until(page, '#ask-error', /needs the token/);
			await shot(page, 'token', false);
			await page.getByLabel('Token').fill(token);
			await page.keyboard.press('Enter');
			await until(page, '#swarms .name', /^registry\.example/);
			assert.ok(!page.url().includes(token), 'the token is in the address');
			await page.reload(); // the tab keeps it
			await until(page, '#swarms .name', /^registry\.example/);
			await page.getByRole('button', {name: 'Hide them'}).click();
			await until(page, '#swarms .name', /^layer \d/);
			assert.ok(!(await page.content()).includes('registry.example'), 'names are still there');
		});
	},

	async 'the page comes back after the seeder'() {
		await order('/set?hosts=12&step=50');
		await look({as: token, allow: /Failed to load resource|ERR_/}, async page => {
			await until(page, '#hosts', /^12$/);
			await order('/kill');
			await page.waitForSelector('.lost');
			await until(page, '#link', /does not answer|closed|reconnecting/);
			await shot(page, 'seeder-away', false);
			await order('/set?hosts=7&step=50');
			await order('/start');
			await page.waitForSelector('.live');
			await until(page, '#hosts', /^7$/);
			await page.waitForFunction(() => document.querySelectorAll('.cells i').length === 7);
		});
	},

	async 'by keyboard and by ear'() {
		await order('/set?hosts=12&step=50');
		await look({as: token}, async page => {
			await until(page, '#hosts', /^12$/);
			const unnamed = await page.evaluate(() => [...document.querySelectorAll('button, input, select, [role=img], section')].filter(e => !(
				e.ariaLabel || e.getAttribute('aria-labelledby') || e.textContent.trim() || e.labels?.[0]?.textContent.trim() ||
				e.hidden || e.closest('#fallbacks'))).map(e => e.outerHTML.slice(0, 80)));
			assert.deepEqual(unnamed, [], 'without a name');
			const reached = [];
			for (let i = 0; i < 4; i++) {
				await page.keyboard.press('Tab');
				reached.push(await page.evaluate(() => document.activeElement.textContent || document.activeElement.name));
			}
			assert.ok(reached.includes('Hide them') && reached.includes('text'), `Tab reaches ${reached}`);
			// WCAG 2: text has 4.5 times the paper's luminance, or the other way round.
			for (const colorScheme of ['light', 'dark']) {
				await page.emulateMedia({colorScheme});
				const poor = await page.evaluate(() => {
					const luminance = c => {
						const [r, g, b] = c.match(/[\d.]+/g).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
						return 0.2126 * r + 0.7152 * g + 0.0722 * b;
					};
					const paper = e => {
						const c = getComputedStyle(e).backgroundColor;
						return /, 0\)$/.test(c) ? paper(e.parentElement) : c;
					};
					return [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && e.children.length === 0 && e.textContent.trim() && e.tagName !== 'OPTION').filter(e => {
						const [a, b] = [getComputedStyle(e).color, paper(e)].map(luminance);
						return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
					}).map(e => e.outerHTML.slice(0, 80));
				});
				assert.deepEqual(poor, [], `too pale (${colorScheme})`);
			}
		});
	},

	async 'the picture in the README'() {
		await order('/kill'); // with its history
		await order('/start');
		await order('/set?hosts=480&step=14');
		await look({as: token, viewport: {width: 1100, height: 980}}, async page => {
			await until(page, '#hosts', /^480$/);
			await order('/set?hosts=480&step=14&play');
			await until(page, '#swarms .right', /^(6|7)\d of 480 hosts/);
			await page.evaluate(() => document.activeElement?.blur());
			await shot(page, 'readme', false);
		});
	},
};

for (const [name, check] of Object.entries(checks)) {
	const begun = performance.now();
	let error = '';
	try {
		await check();
	} catch (e) {
		error = e.stack || String(e) || 'failed';
		await order('/start').catch(() => {}); // for the next, if this one has killed it
	}
	console.log(JSON.stringify({name, error, seconds: (performance.now() - begun) / 1000}));
}
await browser.close();
