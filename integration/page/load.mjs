// How long Chromium takes to show a fleet, and for an update: bench_test.go reads a line of JSON.
import {chromium} from 'playwright-core';

const {PAGE_URL: url, PAGE_TOKEN: token, PAGE_CHROMIUM: executablePath} = process.env;
const browser = await chromium.launch({executablePath, args: ['--no-sandbox', '--disable-dev-shm-usage']});
const result = {Shown: [], Drawn: []};
for (let i = 0; i < 5; i++) {
	const context = await browser.newContext({viewport: {width: 1200, height: 900}});
	const page = await context.newPage();
	await context.addInitScript(t => sessionStorage.setItem('token', t), token);
	const begun = performance.now();
	await page.goto(url, {waitUntil: 'commit'});
	await page.waitForFunction(() => document.querySelectorAll('.cells i').length === 2000);
	result.Shown.push(performance.now() - begun);
	if (i === 0) { // by the browser's own count of what its main thread has done
		const devtools = await context.newCDPSession(page);
		await devtools.send('Performance.enable');
		const busy = async () => (await devtools.send('Performance.getMetrics')).metrics.find(m => m.name === 'TaskDuration').value;
		let before = await busy();
		for (let n = 0; n < 5; n++) {
			await page.waitForTimeout(1000); // the page's pace
			const now = await busy();
			result.Drawn.push(1000 * (now - before));
			before = now;
		}
	}
	await context.close();
}
console.log(JSON.stringify(result));
await browser.close();
