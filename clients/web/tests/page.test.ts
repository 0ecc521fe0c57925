// What people see and do in a chat, against a mesh of the test's own.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { after, afterEach, before, beforeEach, test } from "node:test";

import type { Browser, BrowserContextOptions } from "playwright-core";

import { answer, launch, open, send, type Watched } from "./browser";
import { FakeMesh, type Script } from "./fake";

const REFERENCES = [
  { id: 1, datasetId: "documents", documentId: "d1", name: "Handbook.pdf", page: 12, heading: "Leave", content: "25 working days.", score: 0.9 },
  { id: 2, datasetId: "documents", documentId: "d2", name: "员工手册.docx", heading: "第三章", content: "二十五个工作日", score: 0.8 },
];
const LEAVE: Script = [
  { type: "delta", content: "You have **25 days** [1]" },
  { type: "delta", content: "[2]. Ask early.\n\n- one\n- two" },
  { type: "refs", references: REFERENCES, degraded: ["graph"] },
  { type: "done", degraded: ["graph"] },
];

let browser: Browser;
let mesh: FakeMesh;
let url: string;
let views: Watched[] = [];

before(async () => {
  browser = await launch();
});
after(() => browser.close());
beforeEach(async () => {
  mesh = new FakeMesh();
  url = await mesh.start();
});
afterEach(async () => {
  for (const view of views.splice(0)) {
    await view.page.context().close();
    assert.deepEqual(view.faults, []);
    assert.deepEqual(view.foreign, []);
  }
  await mesh.stop();
});

async function visit(options: BrowserContextOptions = {}, path = "/") {
  const view = await open(browser, url + path, options);
  views.push(view);
  return view.page;
}

async function until(what: () => boolean | Promise<boolean>): Promise<void> {
  for (let tries = 0; tries < 300; tries += 1) {
    if (await what()) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assert.fail("did not happen");
}

test("an answer streams in, cites, and opens its passage; the focus comes back", async () => {
  mesh.answer = LEAVE;
  const page = await visit();
  await send(page, "How many days?");
  await page.getByText("The knowledge graph was not used.").waitFor();
  assert.equal(await answer(page).locator("strong").textContent(), "25 days");
  assert.match(page.url(), /#\/c\/conv_/);
  const citation = answer(page).getByRole("button", { name: "Open source 2: 员工手册.docx" });
  await citation.click();
  const sheet = page.getByRole("dialog");
  await sheet.getByText("二十五个工作日").waitFor();
  await sheet.getByRole("button", { name: "Previous source" }).click();
  await sheet.getByText("25 working days.").waitFor();
  await sheet.getByText("Page 12").last().waitFor();
  await page.keyboard.press("Escape");
  await sheet.waitFor({ state: "detached" });
  assert(await citation.evaluate((element) => element === document.activeElement));
});

test("passages that the answer does not cite are folded away", async () => {
  mesh.answer = [{ type: "delta", content: "The documents do not say." }, { type: "refs", references: REFERENCES }, { type: "done" }];
  const page = await visit();
  await send(page, "What else?");
  await page.getByText("2 passages were looked at").click();
  await page.getByRole("button", { name: "Source 1: Handbook.pdf" }).click();
  await page.getByRole("dialog").getByText("25 working days.").waitFor();
  assert.equal(await page.getByRole("alert").count(), 0);
});

test("a host without TLS does as well", async () => {
  url = url.replace("127.0.0.1", "weft.example");
  const page = await visit();
  await send(page, "Hi");
  await answer(page).getByText("Hello.").waitFor();
  assert.equal(await page.getByRole("button", { name: "Copy the answer" }).count(), 0);
});

test("nothing in an answer or a document becomes a script or leaves the page", async () => {
  const evil =
    "<script>hacked=1</script><img src=x onerror=hacked=1> **ok** [a](javascript:hacked=1) [b](data:text/html,x)\n\n" +
    "![pixel](https://evil.example/p.png)\n\n<iframe src=https://evil.example></iframe>\n\n<style>body{display:none}</style>\n\n" +
    '[1]: https://evil.example\n\n<svg onload="hacked=1">\n\n| a |\n|-|\n| <b onclick=hacked=1>x</b> |\n\nend [1]';
  const name = '"><img src=x onerror=hacked=1>.pdf';
  const reference = { ...REFERENCES[0], name, heading: "<script>hacked=1</script>", content: evil };
  mesh.answer = [{ type: "delta", content: evil }, { type: "refs", references: [reference] }, { type: "done" }];
  const page = await visit();
  await send(page, "<img src=x onerror=hacked=1>");
  await answer(page).getByText("end").waitFor();
  await answer(page).getByRole("button").last().click();
  await page.getByRole("dialog").waitFor();
  assert.equal(await page.evaluate("typeof hacked"), "undefined");
  assert.equal(await page.locator("main :is(img, iframe, script, style), dialog :is(img, iframe, script, svg[onload])").count(), 0);
  const links = await answer(page).locator("a").evaluateAll((all) => all.map((one) => one.getAttribute("href")));
  assert.deepEqual(links, ["https://evil.example/p.png"]);
});

test("stop ends the answer here and at the server, and the next question can be asked", async () => {
  mesh.scripts.set("Long?", [{ type: "delta", content: "The beginning" }, "wait", { type: "delta", content: " never" }, { type: "done" }]);
  const page = await visit();
  await send(page, "Long?");
  await answer(page).getByText("The beginning").waitFor();
  await page.getByLabel("Your question").fill("Next?");
  assert.equal(await page.getByRole("button", { name: "Send" }).count(), 0);
  await page.getByRole("button", { name: "Stop" }).click();
  await page.getByText("You stopped this answer.").waitFor();
  await until(() => mesh.calls.includes("CancelTurn"));
  await page.getByRole("button", { name: "Send" }).click();
  await answer(page).getByText("Hello.").waitFor();
  assert.equal(await page.getByText("never").count(), 0);
});

test("Escape stops", async () => {
  mesh.answer = [{ type: "delta", content: "The beginning" }, "wait", { type: "done" }];
  const page = await visit();
  await send(page, "Long?");
  await answer(page).waitFor();
  await page.keyboard.press("Escape");
  await page.getByText("You stopped this answer.").waitFor();
});

test("a cut connection is taken up again without a word twice", async () => {
  mesh.answer = [{ type: "delta", content: "One " }, { type: "delta", content: "two " }, "cut", { type: "delta", content: "three" }, "cut", { type: "refs" }, { type: "done" }];
  const page = await visit();
  await send(page, "Count");
  await page.getByRole("button", { name: "Good answer" }).waitFor();
  assert.equal(await answer(page).textContent(), "One two three");
  assert.deepEqual(mesh.calls.filter((call) => /Chat/.test(call)), ["StreamChat", "ResumeChat 2", "ResumeChat 3"]);
});

test("a reload in mid-answer goes on", async () => {
  mesh.answer = [{ type: "delta", content: "Before " }, "wait", { type: "delta", content: "after" }, { type: "refs", references: REFERENCES }, { type: "done" }];
  const page = await visit();
  await send(page, "Reload?");
  await answer(page).getByText("Before").waitFor();
  await page.reload();
  await answer(page).getByText("Before").waitFor();
  await until(() => mesh.calls.includes("ResumeChat 0"));
  mesh.proceed();
  await page.getByRole("button", { name: "Good answer" }).waitFor();
  assert.equal(await answer(page).textContent(), "Before after");
  assert.equal(await page.locator("article").count(), 1);
  assert.equal(mesh.turns.size, 1);
  await page.reload();
  await answer(page).getByText("Before after").waitFor();
});

test("an answer goes on while another chat is read", async () => {
  mesh.scripts.set("First", [{ type: "delta", content: "Begun " }, "wait", { type: "delta", content: "and finished" }, { type: "done" }]);
  const page = await visit();
  await send(page, "First");
  await answer(page).getByText("Begun").waitFor();
  await page.getByRole("link", { name: "New chat" }).first().click();
  await send(page, "Second");
  await answer(page).getByText("Hello.").waitFor();
  mesh.proceed();
  await page.getByRole("link", { name: "First" }).click();
  await answer(page).getByText("Begun and finished").waitFor();
  assert(!mesh.calls.includes("CancelTurn"));
});

test("errors are told in plain words, with a way on", async () => {
  mesh.answer = [{ type: "error", reason: "MODEL_UNAVAILABLE", message: "upstream 503" }];
  const page = await visit();
  await send(page, "Hello?");
  await page.getByText("The language model does not answer at the moment.").waitFor();
  assert.equal(await page.getByText("upstream").count(), 0);
  mesh.answer = LEAVE;
  await page.getByRole("button", { name: "Try again" }).click();
  await answer(page).getByText("25 days").waitFor();
});

test("an answer can be rated, and copied", async () => {
  const page = await visit();
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await send(page, "Hi");
  const good = page.getByRole("button", { name: "Good answer" });
  await good.click();
  await until(() => [...mesh.turns.values()][0]?.rating === "up");
  await page.reload();
  await page.locator('button[aria-label="Good answer"][aria-pressed=true]').waitFor();
  await good.click();
  await until(() => [...mesh.turns.values()][0]?.rating === "");
  await page.getByRole("button", { name: "Copy the answer" }).click();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "Hello.");
});

test("conversations are listed, opened by address, gone back to and deleted", async () => {
  const page = await visit();
  await send(page, "First question");
  await answer(page).waitFor();
  const first = page.url();
  await page.getByRole("link", { name: "New chat" }).first().click();
  await send(page, "Second question");
  await answer(page).waitFor();
  await page.goto(first);
  await page.getByRole("article").getByText("First question").waitFor();
  await page.goBack();
  await page.getByRole("article").getByText("Second question").waitFor();
  await page.getByRole("link", { name: "Second question" }).hover();
  await page.getByRole("button", { name: "Delete the chat “Second question”" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Cancel" }).click();
  assert(!mesh.calls.includes("DeleteConversation"));
  await page.getByRole("button", { name: "Delete the chat “Second question”" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
  await page.getByRole("heading", { name: "What would you like to know?" }).waitFor();
  assert.equal(await page.getByRole("link", { name: "Second question" }).count(), 0);
  await page.goto(`${url}/#/c/unknown`);
  await page.getByText("This chat does not exist any more.").waitFor();
});

test("Enter sends, Shift+Enter does not, nor Enter while an input method composes", async () => {
  const page = await visit();
  const field = page.getByLabel("Your question");
  await field.fill("one");
  await field.press("Shift+Enter");
  await field.pressSequentially("two");
  assert.equal(await field.inputValue(), "one\ntwo");
  await field.dispatchEvent("keydown", { key: "Enter", isComposing: true, bubbles: true });
  assert.equal(mesh.calls.length, 0);
  await field.press("Enter");
  await answer(page).waitFor();
  assert.equal([...mesh.turns.values()][0]?.request.messages[0]?.content, "one\ntwo");
  assert.equal([...mesh.turns.values()][0]?.request.resumable, true);
});

test("a token is asked for where none is handed out, and stays in this tab", async () => {
  Object.assign(mesh, { devTokens: false, token: "right" });
  const page = await visit();
  const dialog = page.getByRole("dialog");
  await dialog.getByLabel("Access token").fill("wrong");
  await page.keyboard.press("Enter");
  await dialog.getByText("The server did not accept this token.").waitFor();
  await dialog.getByLabel("Access token").fill("right");
  await page.keyboard.press("Enter");
  await dialog.waitFor({ state: "detached" });
  await send(page, "Hi");
  await answer(page).getByText("Hello.").waitFor();
  assert.equal(await page.evaluate(() => JSON.stringify(localStorage).includes("right")), false);
  await page.reload();
  await answer(page).getByText("Hello.").waitFor();
});

test("a token that the mesh no longer takes is renewed without a word", async () => {
  mesh.token = "first";
  const page = await visit();
  await send(page, "Hi");
  await answer(page).getByText("Hello.").waitFor();
  mesh.token = "second";
  await send(page, "Again");
  await until(async () => (await page.locator("article").count()) === 2);
  await answer(page).getByText("Hello.").waitFor();
  assert.equal(mesh.tokensGiven, 2);
});

test("Chinese or English by the browser, then by choice; dark or light alike", async () => {
  const page = await visit({ locale: "zh-CN", colorScheme: "dark" });
  await page.getByRole("heading", { name: "想了解什么？" }).waitFor();
  assert.equal(await page.evaluate(() => document.documentElement.lang), "zh-CN");
  const dark = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await page.getByRole("button", { name: "Switch to English" }).click();
  await page.getByRole("button", { name: "Use light colours" }).click();
  await page.reload();
  await page.getByRole("heading", { name: "What would you like to know?" }).waitFor();
  assert.notEqual(await page.evaluate(() => getComputedStyle(document.body).backgroundColor), dark);
});

test("a screen reader hears whole sentences, then the end", async () => {
  mesh.answer = [{ type: "delta", content: "A first **sentence**. And a sec" }, "wait", { type: "delta", content: "ond one." }, { type: "done" }];
  const page = await visit();
  await send(page, "Read");
  const log = page.getByRole("log");
  await log.getByText("A first sentence.").waitFor({ state: "attached" });
  assert.equal(await log.getByText("And a sec").count(), 0);
  mesh.proceed();
  await log.getByText("And a second one.").waitFor({ state: "attached" });
  await log.getByText("Answer finished.").waitFor({ state: "attached" });
});

test("a phone: nothing is wider than the screen, the drawer opens and closes", async () => {
  mesh.answer = [{ type: "delta", content: `${"longword".repeat(40)}\n\n\`\`\`\n${"code ".repeat(60)}\n\`\`\`\n\n|a|b|\n|-|-|\n|${"cell".repeat(60)}|x|` }, { type: "refs", references: REFERENCES }, { type: "done" }];
  const page = await visit({ viewport: { width: 360, height: 640 }, hasTouch: true, isMobile: true });
  const width = () => page.evaluate(() => document.documentElement.scrollWidth);
  assert.equal(await width(), 360);
  await send(page, "Wide");
  await page.getByRole("button", { name: "Good answer" }).waitFor();
  assert.equal(await width(), 360);
  await page.getByRole("button", { name: "Open the menu" }).click();
  await page.getByRole("link", { name: "Documents" }).waitFor();
  await page.keyboard.press("Escape");
  await until(async () => (await page.locator("aside[inert]").count()) === 1);
  await page.getByRole("button", { name: "Open the menu" }).click();
  await page.getByRole("link", { name: "Documents" }).click();
  await page.getByRole("heading", { name: "Documents", level: 1 }).waitFor();
  assert.equal(await width(), 360);
});

for (const colorScheme of ["light", "dark"] as const) {
  test(`no fault that axe knows of, ${colorScheme}`, async () => {
    const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
    mesh.answer = LEAVE;
    mesh.datasets.set("documents", { name: "", status: "ready", progress: 1, documents: [{ documentId: "d", name: "a.pdf", bytes: 1200, status: "indexed" }] });
    const page = await visit({ colorScheme, reducedMotion: "reduce" });
    const check = async (where: string) => {
      await page.evaluate(axe);
      const found = await page.evaluate(
        "axe.run().then((r) => r.violations.map((v) => v.id + ': ' + v.nodes.map((n) => n.html.slice(0, 120)).join(' | ')))",
      );
      assert.deepEqual(found, [], where);
    };
    await check("first screen");
    await send(page, "How many days?");
    await page.getByRole("button", { name: "Good answer" }).waitFor();
    await check("answer");
    await answer(page).getByRole("button").first().click();
    await check("source");
    await page.keyboard.press("Escape");
    await page.goto(`${url}/#/documents`);
    await page.getByText("a.pdf").waitFor();
    await check("documents");
    mesh.answer = [{ type: "error", reason: "MODEL_BROKEN", message: "" }];
    await page.goto(url);
    await send(page, "Fails");
    await page.getByRole("button", { name: "Try again" }).waitFor();
    await check("failure");
    await page.getByRole("link", { name: "Fails" }).hover();
    await page.getByRole("button", { name: "Delete the chat “Fails”" }).click();
    await check("question before a deletion");
  });
}
