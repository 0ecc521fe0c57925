// What people see and do in a chat, against a mesh of the test's own.
import assert from "node:assert/strict";
import { test } from "node:test";

import { answer, send } from "./browser";
import type { Script } from "./fake";
import { newWorld, REFERENCES, until } from "./setup";

const LEAVE: Script = [
  { type: "delta", content: "You have **25 days** [1]" },
  { type: "delta", content: "[2]. Ask early.\n\n- one\n- two" },
  { type: "refs", references: REFERENCES, degraded: ["graph"] },
  { type: "done", degraded: ["graph"] },
];

const world = newWorld();

test("an answer streams in, cites, and opens its passage; the focus comes back", async () => {
  world.mesh.answer = LEAVE;
  const page = await world.visit();
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
  world.mesh.answer = [
    { type: "delta", content: "The documents do not say." },
    { type: "refs", references: REFERENCES },
    { type: "done" },
  ];
  const page = await world.visit();
  await send(page, "What else?");
  await page.getByText("2 passages were looked at").click();
  await page.getByRole("button", { name: "Source 1: Handbook.pdf" }).click();
  await page.getByRole("dialog").getByText("25 working days.").waitFor();
  assert.equal(await page.getByRole("alert").count(), 0);
});

test("a host without TLS does as well", async () => {
  world.url = world.url.replace("127.0.0.1", "weft.example");
  const page = await world.visit();
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
  world.mesh.answer = [{ type: "delta", content: evil }, { type: "refs", references: [reference] }, { type: "done" }];
  const page = await world.visit();
  await send(page, "<img src=x onerror=hacked=1>");
  await answer(page).getByText("end").waitFor();
  await answer(page).getByRole("button").last().click();
  await page.getByRole("dialog").waitFor();
  assert.equal(await page.evaluate("typeof hacked"), "undefined");
  assert.equal(
    await page.locator("main :is(img, iframe, script, style), dialog :is(img, iframe, script, svg[onload])").count(),
    0,
  );
  const links = await answer(page)
    .locator("a")
    .evaluateAll((all) => all.map((one) => one.getAttribute("href")));
  assert.deepEqual(links, ["https://evil.example/p.png"]);
});

test("stop ends the answer here and at the server, and the next question can be asked", async () => {
  world.mesh.scripts.set("Long?", [
    { type: "delta", content: "The beginning" },
    "wait",
    { type: "delta", content: " never" },
    { type: "done" },
  ]);
  const page = await world.visit();
  await send(page, "Long?");
  await answer(page).getByText("The beginning").waitFor();
  await page.getByLabel("Your question").fill("Next?");
  assert.equal(await page.getByRole("button", { name: "Send" }).count(), 0);
  await page.getByRole("button", { name: "Stop" }).click();
  await page.getByText("You stopped this answer.").waitFor();
  await until(() => world.mesh.calls.includes("CancelTurn"));
  await page.getByRole("button", { name: "Send" }).click();
  await answer(page).getByText("Hello.").waitFor();
  assert.equal(await page.getByText("never").count(), 0);
});

test("Escape stops", async () => {
  world.mesh.answer = [{ type: "delta", content: "The beginning" }, "wait", { type: "done" }];
  const page = await world.visit();
  await send(page, "Long?");
  await answer(page).waitFor();
  await page.keyboard.press("Escape");
  await page.getByText("You stopped this answer.").waitFor();
});

test("a cut connection is taken up again without a word twice", async () => {
  world.mesh.answer = [
    { type: "delta", content: "One " },
    { type: "delta", content: "two " },
    "cut",
    { type: "delta", content: "three" },
    "cut",
    { type: "refs" },
    { type: "done" },
  ];
  const page = await world.visit();
  await send(page, "Count");
  await page.getByRole("button", { name: "Good answer" }).waitFor();
  assert.equal(await answer(page).textContent(), "One two three");
  assert.deepEqual(
    world.mesh.calls.filter((call) => /Chat/.test(call)),
    ["StreamChat", "ResumeChat 2", "ResumeChat 3"],
  );
});

test("a reload in mid-answer goes on", async () => {
  world.mesh.answer = [
    { type: "delta", content: "Before " },
    "wait",
    { type: "delta", content: "after" },
    { type: "refs", references: REFERENCES },
    { type: "done" },
  ];
  const page = await world.visit();
  await send(page, "Reload?");
  await answer(page).getByText("Before").waitFor();
  await page.reload();
  await answer(page).getByText("Before").waitFor();
  await until(() => world.mesh.calls.includes("ResumeChat 0"));
  world.mesh.proceed();
  await page.getByRole("button", { name: "Good answer" }).waitFor();
  assert.equal(await answer(page).textContent(), "Before after");
  assert.equal(await page.locator("article").count(), 1);
  assert.equal(world.mesh.turns.size, 1);
  await page.reload();
  await answer(page).getByText("Before after").waitFor();
});

test("an answer goes on while another chat is read", async () => {
  world.mesh.scripts.set("First", [
    { type: "delta", content: "Begun " },
    "wait",
    { type: "delta", content: "and finished" },
    { type: "done" },
  ]);
  const page = await world.visit();
  await send(page, "First");
  await answer(page).getByText("Begun").waitFor();
  await page.getByRole("link", { name: "New chat" }).first().click();
  await send(page, "Second");
  await answer(page).getByText("Hello.").waitFor();
  world.mesh.proceed();
  await page.getByRole("link", { name: "First" }).click();
  await answer(page).getByText("Begun and finished").waitFor();
  assert(!world.mesh.calls.includes("CancelTurn"));
});

test("errors are told in plain words, with a way on", async () => {
  world.mesh.answer = [{ type: "error", reason: "MODEL_UNAVAILABLE", message: "upstream 503" }];
  const page = await world.visit();
  await send(page, "Hello?");
  await page.getByText("The language model does not answer at the moment.").waitFor();
  assert.equal(await page.getByText("upstream").count(), 0);
  world.mesh.answer = LEAVE;
  await page.getByRole("button", { name: "Try again" }).click();
  await answer(page).getByText("25 days").waitFor();
});

test("an answer can be rated, and copied", async () => {
  const page = await world.visit();
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await send(page, "Hi");
  const good = page.getByRole("button", { name: "Good answer" });
  await good.click();
  await until(() => [...world.mesh.turns.values()][0]?.rating === "up");
  await page.reload();
  await page.locator('button[aria-label="Good answer"][aria-pressed=true]').waitFor();
  await good.click();
  await until(() => [...world.mesh.turns.values()][0]?.rating === "");
  await page.getByRole("button", { name: "Copy the answer" }).click();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "Hello.");
});

test("conversations are listed, opened by address, gone back to and deleted", async () => {
  const page = await world.visit();
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
  assert(!world.mesh.calls.includes("DeleteConversation"));
  await page.getByRole("button", { name: "Delete the chat “Second question”" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
  await page.getByRole("heading", { name: "What would you like to know?" }).waitFor();
  assert.equal(await page.getByRole("link", { name: "Second question" }).count(), 0);
  await page.goto(`${world.url}/#/c/unknown`);
  await page.getByText("This chat does not exist any more.").waitFor();
});

test("Enter sends, Shift+Enter does not, nor Enter while an input method composes", async () => {
  const page = await world.visit();
  const field = page.getByLabel("Your question");
  await field.fill("one");
  await field.press("Shift+Enter");
  await field.pressSequentially("two");
  assert.equal(await field.inputValue(), "one\ntwo");
  await field.dispatchEvent("keydown", { key: "Enter", isComposing: true, bubbles: true });
  assert.equal(world.mesh.calls.length, 0);
  await field.press("Enter");
  await answer(page).waitFor();
  assert.equal([...world.mesh.turns.values()][0]?.request.messages[0]?.content, "one\ntwo");
  assert.equal([...world.mesh.turns.values()][0]?.request.resumable, true);
});

test("a token is asked for where none is handed out, and stays in this tab", async () => {
  Object.assign(world.mesh, { devTokens: false, token: "right" });
  const page = await world.visit();
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
  world.mesh.token = "first";
  const page = await world.visit();
  await send(page, "Hi");
  await answer(page).getByText("Hello.").waitFor();
  world.mesh.token = "second";
  await send(page, "Again");
  await until(async () => (await page.locator("article").count()) === 2);
  await answer(page).getByText("Hello.").waitFor();
  assert.equal(world.mesh.tokensGiven, 2);
});
