// The page on a real mesh with the extractive model: WEFT_URL names it. Whoever starts the tests starts
// the mesh.
import assert from "node:assert/strict";
import { after, afterEach, before, test } from "node:test";

import type { Browser, BrowserContextOptions, Page } from "playwright-core";

import { answer, launch, open, send, type Watched } from "./browser";
import { pdf } from "./pdf";

const url = process.env["WEFT_URL"] ?? "";
if (!url && process.env["CI"]) throw new Error("Set WEFT_URL to the address of a running mesh.");
const skip = url ? false : "WEFT_URL names no running mesh";

const PAGES = [
  "The Quillon telescope was built in 1987 by the Harrow observatory on mount Alder.",
  "Repairs of the Quillon telescope cost forty thousand crowns in the year 2011.",
];
const CHINESE =
  "# 青禾计划\n\n青禾计划由林晓雨于2019年在苏州发起，目的是为乡村学校提供图书。计划每年捐赠三万册图书。\n";

let browser: Browser;
const views: Watched[] = [];

async function visit(options: BrowserContextOptions = {}): Promise<Page> {
  const view = await open(browser, url, options);
  view.page.setDefaultTimeout(60_000);
  views.push(view);
  return view.page;
}

const rated = (page: Page) =>
  page
    .locator("article")
    .last()
    .getByRole("button", { name: /^(Good answer|回答得好)$/ });

before(async () => {
  if (skip) return;
  browser = await launch();
  const page = await visit();
  const [chooser] = await Promise.all([
    page.waitForEvent("filechooser"),
    page.getByRole("button", { name: "Add files" }).click(),
  ]);
  await chooser.setFiles([
    { name: "Quillon.pdf", mimeType: "application/pdf", buffer: pdf(PAGES) },
    { name: "青禾.md", mimeType: "text/markdown", buffer: Buffer.from(CHINESE) },
    { name: "broken.pdf", mimeType: "application/pdf", buffer: Buffer.from("%PDF-1.4 nothing") },
  ]);
  const tray = page.getByRole("region", { name: "Added files" });
  await tray.getByRole("button", { name: "Clear the list" }).waitFor({ timeout: 120_000 });
  const rows = await tray.getByRole("listitem").allInnerTexts();
  assert.match(rows[0] ?? "", /Ready|Already there/);
  assert.match(rows[1] ?? "", /Ready|Already there/);
  assert.match(rows[2] ?? "", /damaged/);
});

afterEach(async () => {
  for (const view of views.splice(0)) {
    await view.page.context().close();
    assert.deepEqual(view.faults, []);
    assert.deepEqual(view.foreign, []);
  }
});

after(async () => {
  if (skip) return;
  const page = await visit();
  await page.goto(`${url}/#/documents/documents`);
  for (const name of ["Quillon.pdf", "青禾.md", "broken.pdf"]) {
    const button = page.getByRole("button", { name: `Delete “${name}”` });
    await button.click();
    await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
    await button.waitFor({ state: "detached" });
  }
  await browser.close();
});

test("a question about a PDF is answered with its page, which opens, also after a reload", { skip }, async () => {
  const page = await visit();
  await send(page, "When was the Quillon telescope built?");
  await rated(page).waitFor();
  assert.match((await answer(page).textContent()) ?? "", /1987/);
  await answer(page)
    .getByRole("button", { name: /Open source \d+: Quillon.pdf/ })
    .first()
    .click();
  await page.getByRole("dialog").getByText("built in 1987 by the Harrow observatory").waitFor();
  await page.getByRole("dialog").getByText("Page 1", { exact: true }).last().waitFor();
  await page.keyboard.press("Escape");
  const before = await answer(page).textContent();
  await page.reload();
  await rated(page).waitFor();
  assert.equal(await answer(page).textContent(), before);
});

test("a question in Chinese is answered in Chinese", { skip }, async () => {
  const page = await visit({ locale: "zh-CN" });
  await send(page, "青禾计划是谁发起的？");
  await rated(page).waitFor();
  assert.match((await answer(page).textContent()) ?? "", /林晓雨/);
  await page
    .getByRole("button", { name: /青禾\.md/ })
    .first()
    .waitFor();
});

test("what the documents do not hold is said, and looks like an answer", { skip }, async () => {
  const page = await visit();
  await send(page, "What is the boiling point of tungsten?");
  await rated(page).waitFor();
  assert.equal(await page.getByRole("alert").count(), 0);
});

test("a cut stream is taken up again from the mesh without a word twice", { skip }, async () => {
  const page = await visit();
  await send(page, "What did repairs of the Quillon telescope cost?");
  await rated(page).waitFor();
  const whole = await answer(page).textContent();
  await page.getByRole("link", { name: "New chat" }).first().click();
  let resumed = 0;
  page.on("request", (request) => {
    if (request.url().endsWith("/ResumeChat")) resumed += 1;
  });
  await page.route("**/weft.v1.ChatService/StreamChat", async (route) => {
    const response = await route.fetch();
    const body = await response.body();
    const first = 5 + body.readUInt32BE(1); // one message: a byte of flags, its length, its bytes
    await route.fulfill({ response, body: body.subarray(0, first) });
  });
  await send(page, "What did repairs of the Quillon telescope cost?");
  await rated(page).waitFor();
  assert.equal(await answer(page).textContent(), whole);
  assert.equal(resumed, 1);
});

test("a reload right after the question loses nothing", { skip }, async () => {
  const page = await visit();
  const begun = page.waitForResponse("**/weft.v1.ChatService/StreamChat");
  await send(page, "Where is the Quillon telescope?");
  await begun;
  await page.reload();
  await rated(page).waitFor();
  assert.match((await answer(page).textContent()) ?? "", /Alder/);
  assert.equal(await page.locator("article").count(), 1);
});

test("a rated answer stays rated; a deleted chat is gone", { skip }, async () => {
  const page = await visit();
  await send(page, "Hello");
  await rated(page).click();
  await page.locator("button[aria-pressed=true]").waitFor();
  await page.waitForLoadState("networkidle");
  await page.reload();
  await page.locator("button[aria-pressed=true]").waitFor();
  const here = page.url();
  const row = page.locator("aside li", { has: page.locator("a[aria-current=page]") });
  await row.hover();
  await row.getByRole("button").click();
  await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
  await page.getByRole("heading", { name: "What would you like to know?" }).waitFor();
  await page.goto(here);
  await page.getByText("This chat does not exist any more.").waitFor();
});
