// The page for everyone: languages, colours, phones, keyboards, screen readers.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { test } from "node:test";

import { answer, send } from "./browser";
import { newWorld, REFERENCES, until } from "./setup";

const world = newWorld();

test("Chinese or English by the browser, then by choice; dark or light alike", async () => {
  const page = await world.visit({ locale: "zh-CN", colorScheme: "dark" });
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
  world.mesh.answer = [
    { type: "delta", content: "A first **sentence**. And a sec" },
    "wait",
    { type: "delta", content: "ond one." },
    { type: "done" },
  ];
  const page = await world.visit();
  await send(page, "Read");
  const log = page.getByRole("log");
  await log.getByText("A first sentence.").waitFor({ state: "attached" });
  assert.equal(await log.getByText("And a sec").count(), 0);
  world.mesh.proceed();
  await log.getByText("And a second one.").waitFor({ state: "attached" });
  await log.getByText("Answer finished.").waitFor({ state: "attached" });
});

test("a phone: nothing is wider than the screen, the drawer opens and closes", async () => {
  world.mesh.answer = [
    {
      type: "delta",
      content: `${"longword".repeat(40)}\n\n\`\`\`\n${"code ".repeat(60)}\n\`\`\`\n\n|a|b|\n|-|-|\n|${"cell".repeat(60)}|x|`,
    },
    { type: "refs", references: REFERENCES },
    { type: "done" },
  ];
  const page = await world.visit({ viewport: { width: 360, height: 640 }, hasTouch: true, isMobile: true });
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
    world.mesh.answer = [
      { type: "delta", content: "You have **25 days** [1]. Ask early.\n\n- one\n- two" },
      { type: "refs", references: REFERENCES, degraded: ["graph"] },
      { type: "done" },
    ];
    world.mesh.datasets.set("documents", {
      name: "",
      status: "ready",
      progress: 1,
      documents: [{ documentId: "d", name: "a.pdf", bytes: 1200, status: "indexed" }],
    });
    const page = await world.visit({ colorScheme, reducedMotion: "reduce" });
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
    await page.goto(`${world.url}/#/documents`);
    await page.getByText("a.pdf").waitFor();
    await check("documents");
    world.mesh.answer = [{ type: "error", reason: "MODEL_BROKEN", message: "" }];
    await page.goto(world.url);
    await send(page, "Fails");
    await page.getByRole("button", { name: "Try again" }).waitFor();
    await check("failure");
    await page.getByRole("link", { name: "Fails" }).hover();
    await page.getByRole("button", { name: "Delete the chat “Fails”" }).click();
    await check("question before a deletion");
  });
}
