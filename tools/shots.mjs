// Pictures of a built site, and what axe-core finds in it. For developers; nothing else needs it.
//
//   npm install playwright-core axe-core              in a folder outside the repository, then from that folder:
//   node .../tools/shots.mjs SITE [--out shots] [--pages book/intro,book/board] [--chromium /usr/bin/chromium]
//
// Each page is opened at desktop and phone width, light and dark. Exit code 1: a request left the site, a script failed, the page
// scrolls sideways, or axe found something serious or critical.
import { createServer } from "node:http";
import { mkdir, readFile, readdir } from "node:fs/promises";
import { createRequire } from "node:module";
import { extname, join, resolve } from "node:path";
import { parseArgs } from "node:util";

const require = createRequire(join(process.cwd(), "package.json")); // the packages of the folder one stands in
const { chromium } = require("playwright-core");
const axe = await readFile(require.resolve("axe-core/axe.min.js"), "utf8");

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    out: { type: "string", default: "shots" },
    pages: { type: "string" },
    chromium: { type: "string", default: "/usr/bin/chromium" },
  },
});
const root = resolve(positionals[0] ?? "_build/site");
const all = (await readdir(root, { recursive: true })).filter((f) => /^(book|notebooks)\/.*\.html$/.test(f)).map((f) => f.slice(0, -5));
const pages = values.pages?.split(",") ?? all.sort();
const types = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".png": "image/png", ".woff2": "font/woff2" };

const server = createServer(async (request, response) => {
  try {
    const path = decodeURIComponent(new URL(request.url, "http://x").pathname);
    const body = await readFile(join(root, path.endsWith("/") ? `${path}index.html` : path));
    response.writeHead(200, { "content-type": types[extname(path)] ?? "application/octet-stream" }).end(body);
  } catch {
    response.writeHead(404).end();
  }
}).listen(0, "127.0.0.1");
await new Promise((ready) => server.once("listening", ready));
const base = `http://127.0.0.1:${server.address().port}/`;
const browser = await chromium.launch({ executablePath: values.chromium, args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"] });
await mkdir(values.out, { recursive: true });

let failures = 0;
for (const [size, width, height] of [["desktop", 1366, 900], ["phone", 390, 844]])
  for (const colorScheme of ["light", "dark"]) {
    const context = await browser.newContext({ viewport: { width, height }, colorScheme });
    for (const page of pages) {
      const tab = await context.newPage();
      const wrong = [];
      tab.on("console", (m) => m.type() === "error" && wrong.push(m.text()));
      tab.on("pageerror", (error) => wrong.push(error.message));
      tab.on("response", (r) => r.status() >= 400 && wrong.push(`${r.status()} ${r.url()}`));
      tab.on("request", (r) => /^https?:/.test(r.url()) && !r.url().startsWith(base) && wrong.push(`left the site: ${r.url()}`));
      await tab.goto(`${base}${page}.html`, { waitUntil: "load" });
      await tab.waitForTimeout(700);
      await tab.screenshot({ path: join(values.out, `${page.replaceAll("/", "_")}-${size}-${colorScheme}.png`), fullPage: true });
      const sideways = await tab.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      if (sideways > 0) wrong.push(`scrolls sideways by ${sideways} px`);
      await tab.addScriptTag({ content: axe });
      const { violations } = await tab.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
      const found = violations.map((v) => `${v.impact} ${v.id} x${v.nodes.length}: ${v.nodes.slice(0, 2).map((n) => `${n.target.join(" ")} ${n.html.slice(0, 120)} ${n.any[0]?.message.slice(0, 120) ?? ""}`).join(" | ")}`);
      const bad = wrong.length + violations.filter((v) => ["serious", "critical"].includes(v.impact)).length;
      failures += bad;
      console.log(`${bad ? "FAIL" : "ok  "} ${page} ${size} ${colorScheme}${[...wrong, ...found].map((line) => `\n       ${line}`).join("")}`);
      await tab.close();
    }
    await context.close();
  }
await browser.close();
server.close();
process.exit(failures ? 1 : 0);
